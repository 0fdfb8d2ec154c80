//! The secret of a company's database, which is not in it: what seals the names of people, and signs what the audit chain was.
//!
//! One file of 256 random bits. A key for each purpose is derived of it by HKDF with SHA-256 (RFC 5869), so that what is known of
//! one tells nothing of another. Names are sealed with AES-256 in GCM (NIST SP 800-38D) under a random nonce, bound to whose they
//! are; people are found by an HMAC of their address (RFC 2104); checkpoints are signed with Ed25519 (RFC 8032).

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ring::hmac::{self, HMAC_SHA256};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use crate::key::{from_hex, hex};
use crate::store::{Database, Error};

const BYTES: usize = 32;
/// Who may read the file: its owner.
const MODE: u32 = 0o600;
/// More is no secret of ours.
const FILE_BYTES_MAX: u64 = 1024;
/// Binds every key to this program.
const SALT: &[u8] = b"rempart secret 1";

/// The keys that are derived of a secret. It is never printed.
pub struct Secret {
    sealing: LessSafeKey,
    marking: hmac::Key,
    prompts: hmac::Key,
    signing: Ed25519KeyPair,
    fingerprint: String,
}

/// 32 bytes of key.
struct KeyBytes;

impl KeyType for KeyBytes {
    fn len(&self) -> usize {
        BYTES
    }
}

impl Secret {
    /// Where the secret of a database is, unless it is told: beside its file. Of a server it must be told.
    pub fn place(database: &Database, told: Option<&Path>) -> Option<PathBuf> {
        match (told, database) {
            (Some(told), _) => Some(told.to_owned()),
            (None, Database::File(path)) => {
                let mut place = path.clone().into_os_string();
                place.push(".secret");
                Some(place.into())
            }
            (None, Database::Server(_)) => None,
        }
    }

    /// Reads a secret, or makes one where there is no such file; of several processes one makes it.
    ///
    /// # Errors
    /// What the system says, and that a file holds something else.
    pub fn open_or_make(path: &Path) -> Result<Self, Error> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes)?;
        // Complete under another name first: whoever finds it finds all of it.
        let mut draft = path.as_os_str().to_owned();
        let mut name = [0; 8];
        getrandom::fill(&mut name)?;
        draft.push(format!(".{}", hex(&name)));
        let draft = PathBuf::from(draft);
        if !path.exists() {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(MODE).open(&draft)?;
            writeln!(file, "{}", hex(&bytes))?;
            file.sync_all()?;
            let made = std::fs::hard_link(&draft, path);
            std::fs::remove_file(&draft)?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
            match made {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        Self::open(path)
    }

    /// Reads a secret.
    ///
    /// # Errors
    /// What the system says, and that the file holds something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut text = String::new();
        let file = File::open(path)?;
        file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        from_hex(text.trim()).and_then(Self::of).ok_or_else(|| {
            let message = format!(
                "{} holds no secret: that is 64 hexadecimal digits",
                path.display()
            );
            Error::Refused(message)
        })
    }

    fn of(bytes: [u8; BYTES]) -> Option<Self> {
        let root = Salt::new(HKDF_SHA256, SALT).extract(&bytes);
        let sealing = UnboundKey::new(&AES_256_GCM, &derived(&root, b"names")?).ok()?;
        let signing = Ed25519KeyPair::from_seed_unchecked(&derived(&root, b"checkpoints")?).ok()?;
        Some(Self {
            sealing: LessSafeKey::new(sealing),
            marking: hmac::Key::new(HMAC_SHA256, &derived(&root, b"marks")?),
            prompts: hmac::Key::new(HMAC_SHA256, &derived(&root, b"prompts")?),
            signing,
            fingerprint: hex(&derived(&root, b"fingerprint")?[..8]),
        })
    }

    /// What tells it from others, and nothing of it.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A text by which one finds what belongs to another, without telling it.
    pub(crate) fn mark(&self, text: &str) -> String {
        hex(hmac::sign(&self.marking, text.as_bytes()).as_ref())
    }

    /// A text by which one finds a prompt of a project that one knows, without telling it.
    pub(crate) fn prompt(&self, project: &str, prompt: &str) -> String {
        let text = [project, "\0", prompt].concat();
        hex(hmac::sign(&self.prompts, text.as_bytes()).as_ref())
    }

    /// Seals a text of somebody: nobody else's name opens it.
    pub(crate) fn seal(&self, whose: &str, text: &str) -> Result<String, Error> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce)?;
        let mut sealed = text.as_bytes().to_vec();
        let aad = Aad::from(whose.as_bytes());
        let done =
            self.sealing
                .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed);
        done.map_err(|_| Error::Refused("that is too long to be sealed".to_owned()))?;
        Ok([hex(&nonce), hex(&sealed)].concat())
    }

    /// What was sealed; `None` where it was sealed with another secret, or changed.
    pub(crate) fn unseal(&self, whose: &str, sealed: &str) -> Option<String> {
        let (nonce, sealed) = sealed.split_at_checked(2 * NONCE_LEN)?;
        let nonce = Nonce::assume_unique_for_key(from_hex(nonce)?);
        let mut bytes = bytes_of(sealed)?;
        let text = self
            .sealing
            .open_in_place(nonce, Aad::from(whose.as_bytes()), &mut bytes);
        String::from_utf8(text.ok()?.to_vec()).ok()
    }

    /// Signs a text; the signature in hexadecimal digits.
    pub(crate) fn sign(&self, text: &str) -> String {
        hex(self.signing.sign(text.as_bytes()).as_ref())
    }

    /// The public half of what signs, in hexadecimal digits.
    pub fn public_key(&self) -> String {
        hex(self.signing.public_key().as_ref())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

/// Whether the holder of the secret with this public key has signed a text.
pub(crate) fn is_signed(public_key: &str, text: &str, signature: &str) -> bool {
    let (Some(key), Some(signature)) = (bytes_of(public_key), bytes_of(signature)) else {
        return false;
    };
    UnparsedPublicKey::new(&ED25519, key)
        .verify(text.as_bytes(), &signature)
        .is_ok()
}

fn derived(root: &Prk, purpose: &[u8]) -> Option<[u8; BYTES]> {
    let mut key = [0; BYTES];
    root.expand(&[purpose], KeyBytes).ok()?.fill(&mut key).ok()?;
    Some(key)
}

/// Bytes of hexadecimal digits, however many.
fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    let pair = |at| u8::from_str_radix(&digits[at..at + 2], 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_sealed_is_opened_by_its_owner_and_its_secret_alone() {
        let (one, other) = (Secret::of([1; 32]).unwrap(), Secret::of([2; 32]).unwrap());
        let sealed = one.seal("user_a", "anna@example.org").unwrap();
        assert!(!sealed.contains("anna"));
        assert_ne!(sealed, one.seal("user_a", "anna@example.org").unwrap());
        assert_eq!(one.unseal("user_a", &sealed).as_deref(), Some("anna@example.org"));
        assert_eq!(one.unseal("user_b", &sealed), None);
        assert_eq!(other.unseal("user_a", &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(one.unseal("user_a", &changed), None, "{at}");
        }
        for short in ["", "00", "é", &sealed[..25]] {
            assert_eq!(one.unseal("user_a", short), None);
        }
        assert_ne!(one.mark("a"), other.mark("a"));
        assert_eq!(format!("{one:?}"), "Secret");
    }

    #[test]
    fn a_signature_is_of_one_text_and_one_secret() {
        let (one, other) = (Secret::of([1; 32]).unwrap(), Secret::of([2; 32]).unwrap());
        let signature = one.sign("a");
        assert!(is_signed(&one.public_key(), "a", &signature));
        assert!(!is_signed(&one.public_key(), "b", &signature));
        assert!(!is_signed(&other.public_key(), "a", &signature));
        assert!(!is_signed("", "a", &signature) && !is_signed(&one.public_key(), "a", "x"));
    }

    #[test]
    fn a_secret_is_made_once_and_its_owner_s() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("rempart.db.secret");
        let prints: Vec<String> = std::thread::scope(|scope| {
            let open = || Secret::open_or_make(&place).unwrap().fingerprint().to_owned();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(prints.iter().all(|print| *print == prints[0]), "{prints:?}");
        let mode = std::fs::metadata(&place).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::write(&place, "something else").unwrap();
        assert!(matches!(Secret::open_or_make(&place), Err(Error::Refused(_))));
    }
}
