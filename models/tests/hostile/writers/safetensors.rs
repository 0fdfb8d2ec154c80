//! Writes safetensors files from tensors, or from any header at all.

use std::fmt::Write;

/// A file of the `tensors` (name, type, shape, bytes), one after the other.
pub(crate) fn encode(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let mut header = String::from("{");
    let mut data = Vec::new();
    for (index, (name, dtype, shape, bytes)) in tensors.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let end = data.len() + bytes.len();
        let row = format!(
            "{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{},{end}]}}",
            data.len()
        );
        write!(header, "{comma}\"{name}\":{row}").expect("writing to a string cannot fail");
        data.extend(*bytes);
    }
    header.push('}');
    with_header(header.as_bytes(), &data)
}

/// A file with exactly this header and data.
pub(crate) fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(data);
    out
}
