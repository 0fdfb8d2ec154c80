//! Writes GGUF files, every field of which a test can falsify.

/// Bytes that the tensor data are aligned to unless a file says otherwise.
pub(crate) const ALIGNMENT: usize = 32;

/// A file in the making. What the builder's methods add is valid; the public fields break it.
#[derive(Clone, Debug)]
pub(crate) struct GgufFile {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    /// Instead of the real count.
    pub(crate) tensor_count: Option<u64>,
    /// Instead of the real count.
    pub(crate) key_count: Option<u64>,
    pub(crate) keys: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) tensors: Vec<TensorRow>,
    /// Where the data start is rounded up to this.
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

/// A row of the tensor table, as it is written.
#[derive(Clone, Debug)]
pub(crate) struct TensorRow {
    pub(crate) name: Vec<u8>,
    /// Instead of the real count.
    pub(crate) dimension_count: Option<u32>,
    /// The contiguous dimension first.
    pub(crate) dimensions: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) offset: u64,
}

/// A metadata value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    /// The elements' type, which an empty array needs too.
    Array(u32, Vec<Value>),
}

/// Where a field starts in an encoded file, and what a reader calls it.
pub(crate) type Mark = (usize, &'static str);

impl Value {
    /// As the file has it: the type, then the value.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.kind().to_le_bytes().to_vec();
        self.encode_bare(&mut out);
        out
    }

    pub(crate) fn strings<S: AsRef<str>>(values: &[S]) -> Self {
        Self::Array(
            8,
            values
                .iter()
                .map(|value| Self::String(value.as_ref().to_owned()))
                .collect(),
        )
    }

    fn kind(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(..) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    fn encode_bare(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(value) => out.extend(value.to_le_bytes()),
            Self::I8(value) => out.extend(value.to_le_bytes()),
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::I16(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::String(value) => out.extend(string(value.as_bytes())),
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::I64(value) => out.extend(value.to_le_bytes()),
            Self::F64(value) => out.extend(value.to_le_bytes()),
            Self::Array(kind, values) => {
                out.extend(kind.to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                for value in values {
                    value.encode_bare(out);
                }
            }
        }
    }
}

/// A length and that many bytes.
pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u64).to_le_bytes().to_vec();
    out.extend(bytes);
    out
}

impl GgufFile {
    /// A version 3 file of `architecture` without tensors.
    pub(crate) fn new(architecture: &str) -> Self {
        let empty = Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: ALIGNMENT,
            data: Vec::new(),
        };
        empty.key("general.architecture", &Value::String(architecture.to_owned()))
    }

    #[must_use]
    pub(crate) fn key(self, name: &str, value: &Value) -> Self {
        self.raw_key(name.as_bytes(), value.encode())
    }

    /// A key whose name and encoded value are written as they are.
    #[must_use]
    pub(crate) fn raw_key(mut self, name: &[u8], encoded: Vec<u8>) -> Self {
        self.keys.push((name.to_vec(), encoded));
        self
    }

    /// A tensor after all others. `shape` is row-major, `kind` is ggml's number.
    #[must_use]
    pub(crate) fn tensor(mut self, name: &str, kind: u32, shape: &[usize], bytes: &[u8]) -> Self {
        self.data
            .resize(self.data.len().next_multiple_of(self.alignment.max(1)), 0);
        self.tensors.push(TensorRow {
            name: name.as_bytes().to_vec(),
            dimension_count: None,
            dimensions: shape.iter().rev().map(|&size| size as u64).collect(),
            kind,
            offset: self.data.len() as u64,
        });
        self.data.extend(bytes);
        self
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        self.encode_marked().0
    }

    /// The file, and where each field of its header starts.
    pub(crate) fn encode_marked(&self) -> (Vec<u8>, Vec<Mark>) {
        let mut out = Vec::new();
        let mut marks = Vec::new();
        let mut put = |field: &'static str, bytes: &[u8]| {
            marks.push((out.len(), field));
            out.extend(bytes);
        };
        put("magic", &self.magic);
        put("version", &self.version.to_le_bytes());
        put(
            "tensor_count",
            &self
                .tensor_count
                .unwrap_or(self.tensors.len() as u64)
                .to_le_bytes(),
        );
        put(
            "metadata_kv_count",
            &self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes(),
        );
        for (name, encoded) in &self.keys {
            put("key", &string(name));
            let (kind, value) = encoded.split_at(encoded.len().min(4));
            put("value type", kind);
            put("", value);
        }
        for row in &self.tensors {
            put("name", &string(&row.name));
            let dimension_count = row.dimension_count.unwrap_or(row.dimensions.len() as u32);
            put("n_dims", &dimension_count.to_le_bytes());
            for dimension in &row.dimensions {
                put("dimension", &dimension.to_le_bytes());
            }
            put("type", &row.kind.to_le_bytes());
            put("offset", &row.offset.to_le_bytes());
        }
        if !self.data.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment.max(1)), 0);
            out.extend(&self.data);
        }
        (out, marks)
    }
}
