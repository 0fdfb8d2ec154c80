//! The last look at what is handed on: whatever has the form of a secret, or is one that is known, is masked. What makes the
//! files puts none in; this is for what nobody has thought of, such as a password in a path.

use std::path::PathBuf;

use regex::{Captures, Regex};

/// In the place of what was there.
const MASK: &str = "[masked]";
/// Shorter ones are parts of words.
const KNOWN_BYTES_MIN: usize = 5;

/// What has the form of a secret, each as what stands before it, which stays, and the secret.
const FORMS: [&str; 9] = [
    // Our keys, and others'; tokens of hubs.
    r"(\b)(?:sk-|pk-|rk-)[A-Za-z0-9_-]{8,}",
    r"(\b)(?:hf_|ghp_|github_pat_|glpat-|xox[abp]-)[A-Za-z0-9_-]{8,}",
    // A login's tokens.
    r"(\b)eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){1,4}",
    r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{6,}",
    // The user and password of a URL; a password may have anything in it.
    r#"(\b[a-z][a-z0-9+.-]*://)[^\s/"'@]*:[^\s"']*@"#,
    r#"(\b[a-z][a-z0-9+.-]*://)[^\s/"'@]+@"#,
    r#"(?i)((?:password|passwd|passphrase|secret|token|api[_-]?key)=)[^\s"'&,;\[][^\s"'&,;]*"#,
    r"()-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)",
    // Addresses of people.
    r"(^|[^A-Za-z0-9._%+-])[\p{L}0-9._%+-]+@[\p{L}0-9-]+(?:\.[\p{L}0-9-]+)*\.\p{L}{2,}",
];
/// Whose home it is.
const HOME: &str = r#"(/(?:home|Users)/)[^\s/"']+"#;

/// Masks secrets.
pub(super) struct Sieve {
    /// The longest first: one may be a part of another.
    known: Vec<String>,
    forms: Vec<Regex>,
    /// Of who runs this.
    home: Option<String>,
}

impl Sieve {
    /// `known` are secrets wherever they stand.
    pub(super) fn new(known: &[String], home: Option<PathBuf>) -> Self {
        let passwords = known.iter().filter_map(|secret| password_of(secret));
        let plain: Vec<String> = known.iter().cloned().chain(passwords).collect();
        let mut known: Vec<String> = plain
            .iter()
            .map(|secret| quoted(secret))
            .chain(plain.iter().cloned())
            .filter(|secret| secret.len() >= KNOWN_BYTES_MIN)
            .collect();
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let forms = FORMS.iter().chain([&HOME]);
        Self {
            known,
            forms: forms
                .map(|form| Regex::new(form).expect("it is written above"))
                .collect(),
            home: home
                .map(|home| home.display().to_string())
                .filter(|home| home.len() > 1),
        }
    }

    /// The text without secrets, and how many it had.
    pub(super) fn sift(&self, text: &str) -> (String, usize) {
        let (mut text, mut masked) = (text.to_owned(), 0);
        if let Some(home) = &self.home {
            text = text.replace(&format!("{home}/"), "~/");
        }
        for secret in &self.known {
            masked += text.matches(secret.as_str()).count();
            text = text.replace(secret.as_str(), MASK);
        }
        for form in &self.forms {
            let mask = |found: &Captures<'_>| {
                masked += 1;
                format!("{}{MASK}", &found[1])
            };
            text = form.replace_all(&text, mask).into_owned();
        }
        (text, masked)
    }
}

/// As it stands within quotes.
fn quoted(secret: &str) -> String {
    let text = serde_json::Value::from(secret).to_string();
    text[1..text.len() - 1].to_owned()
}

/// Of a URL that has one.
fn password_of(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let (user, _) = rest.rsplit_once('@')?;
    let (_, password) = user.split_once(':')?;
    Some(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_masked() {
        let sieve = Sieve::new(&[], Some("/srv/anna".into()));
        for (text, left) in [
            ("key sk-rempart-67iibbOw-abcdef0123456789 was", "key [masked] was"),
            ("HF_TOKEN=hf_abcdefgh1234", "HF_TOKEN=[masked]"),
            (
                "Authorization: Bearer abc.def-123",
                "Authorization: Bearer [masked]",
            ),
            ("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln", "[masked]"),
            (
                "postgres://u:p@ss/word@db/rempart",
                "postgres://[masked]db/rempart",
            ),
            (
                "https://anna@mirror.example/x",
                "https://[masked]mirror.example/x",
            ),
            (
                "host=db password=hunter2 user=x",
                "host=db password=[masked] user=x",
            ),
            ("anna.müller@example.org asked", "[masked] asked"),
            ("\"/home/anna/models\"", "\"/home/[masked]/models\""),
            ("/srv/anna/.local/share", "~/.local/share"),
            (
                "a\n-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\nb",
                "a\n[masked]\nb",
            ),
            ("-----BEGIN EC PRIVATE KEY-----\ncut", "[masked]"),
        ] {
            assert_eq!(sieve.sift(text), (left.to_owned(), left.matches(MASK).count()));
        }
    }

    #[test]
    fn what_helps_stays() {
        let sieve = Sieve::new(&["m".to_owned()], None);
        for text in [
            "hf:Qwen/Qwen3-0.6B@0123abc:Qwen3-0.6B-Q8_0.gguf",
            "hf:org/name@v1.0",
            "vllm:prompt_tokens_total{model_name=\"m\"} 7",
            "tokens-per-day=2000000",
            "secret = \"/etc/rempart/secret\"  # file",
            "https://login.example.org/realms/company",
            "2026-11-28T09:55:59.123456Z  INFO listening address=127.0.0.1:8080",
            "0af7651916cd43dd8448eb211c80319c",
        ] {
            assert_eq!(sieve.sift(text), (text.to_owned(), 0));
        }
    }

    #[test]
    fn what_is_known_is_masked_wherever_it_stands() {
        let sieve = Sieve::new(&["postgres://u:hunter2@db/x".to_owned()], None);
        let (left, masked) = sieve.sift("a hunter2b postgres://u:hunter2@db/x");
        assert_eq!((left.as_str(), masked), ("a [masked]b [masked]", 2));
        let sieve = Sieve::new(&["open\"sesame".to_owned()], None);
        assert_eq!(sieve.sift(r#"{"a": "open\"sesame"}"#).0, r#"{"a": "[masked]"}"#);
    }
}
