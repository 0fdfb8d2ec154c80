//! Archives as POSIX has them ("ustar Interchange Format"): files with short names, nobody's, for their owner alone.

use std::io::{self, Write};

const BLOCK_BYTES: usize = 512;
/// Of a name that needs no second field.
pub(super) const NAME_BYTES_MAX: usize = 100;

/// Adds a file, which was changed then, in Unix seconds. Nothing is checked but the length of its name.
pub(super) fn add(out: &mut impl Write, name: &str, content: &[u8], changed_s: u64) -> io::Result<()> {
    assert!(
        name.len() <= NAME_BYTES_MAX,
        "names are ours, and short. This is a bug."
    );
    let mut head = [0_u8; BLOCK_BYTES];
    let mut put = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, &format!("{changed_s:011o}"));
    // Its sum counts the field of the sum as blanks.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    out.write_all(&head)?;
    out.write_all(content)?;
    let rest = content.len().next_multiple_of(BLOCK_BYTES) - content.len();
    out.write_all(&[0; BLOCK_BYTES][..rest])
}

/// Ends an archive.
pub(super) fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK_BYTES])
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Read by the program that everybody has.
    #[test]
    fn what_is_added_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let name = "n".repeat(NAME_BYTES_MAX);
        let mut out = Vec::new();
        for (name, content) in [
            ("a/empty", String::new()),
            ("a/block", "b".repeat(BLOCK_BYTES)),
            ("a/more", "m".repeat(BLOCK_BYTES + 1)),
            (name.as_str(), "long name".to_owned()),
        ] {
            add(&mut out, name, content.as_bytes(), 1_793_491_200).unwrap();
        }
        end(&mut out).unwrap();
        std::fs::write(&path, out).unwrap();
        let tar = |arguments: &[&str]| {
            let done = Command::new("tar").args(arguments).arg("-f").arg(&path).output();
            let done = done.unwrap();
            assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
            String::from_utf8(done.stdout).unwrap()
        };
        let listed = tar(&["--list"]);
        assert_eq!(
            listed.lines().collect::<Vec<_>>(),
            ["a/empty", "a/block", "a/more", &name]
        );
        assert_eq!(
            tar(&["--extract", "--to-stdout", "a/more"]).len(),
            BLOCK_BYTES + 1
        );
        let long = tar(&["--list", "--verbose", "--utc"]);
        assert!(long.starts_with("-rw------- 0/0"), "{long}");
        assert!(long.contains("2026-11-01"), "{long}");
    }
}
