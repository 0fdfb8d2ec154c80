//! The bytes of each token: what a decoder makes of it inside a text.

use std::borrow::Cow;

use serde_json::Value;
use tokenizers::DecoderWrapper;

use crate::Error;
use crate::detokenizer::Lead;

/// Byte strings by id in one allocation.
pub(super) struct Pieces {
    blob: Vec<u8>,
    /// Where the bytes of each id begin; one entry more than ids.
    starts: Vec<u32>,
    /// Ids without a token are holes.
    present: Vec<bool>,
    lead: Lead,
}

impl Pieces {
    pub(super) fn new(tokens: impl Iterator<Item = Option<Vec<u8>>>, lead: Lead) -> Result<Self, Error> {
        let (mut blob, mut starts, mut present) = (Vec::new(), vec![0], Vec::new());
        for token in tokens {
            present.push(token.is_some());
            blob.extend_from_slice(&token.unwrap_or_default());
            let end = u32::try_from(blob.len());
            starts.push(end.map_err(|_| Error::Load("the vocabulary is over 4 GiB".to_owned()))?);
        }
        Ok(Self {
            blob,
            starts,
            present,
            lead,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.present.len()
    }

    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        if !*self.present.get(id)? {
            return None;
        }
        Some(&self.blob[self.starts[id] as usize..self.starts[id + 1] as usize])
    }

    pub(super) fn lead(&self) -> Lead {
        self.lead
    }
}

/// How tokens become bytes: the decoder of a tokenizer, reduced to what it does to one token.
pub(super) struct Decoding {
    steps: Vec<Step>,
    pub(super) lead: Lead,
}

enum Step {
    ByteLevel,
    Replace {
        from: String,
        to: String,
    },
    ByteFallback,
    Strip {
        content: String,
        start: usize,
        stop: usize,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    Spaced,
}

impl Decoding {
    /// GPT-2's alphabet of printable characters for bytes.
    pub(super) fn byte_level() -> Self {
        Self {
            steps: vec![Step::ByteLevel],
            lead: Lead::Keep,
        }
    }

    /// SentencePiece: `▁` is a blank, `<0x41>` a byte.
    pub(super) fn sentence_piece(space_prefix: bool) -> Self {
        let replace = Step::Replace {
            from: "▁".to_owned(),
            to: " ".to_owned(),
        };
        let lead = if space_prefix { Lead::Blanks(1) } else { Lead::Keep };
        Self {
            steps: vec![replace, Step::ByteFallback],
            lead,
        }
    }

    /// The decoder of a `tokenizer.json`.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, Error> {
        let Some(decoder) = decoder else {
            return Ok(Self {
                steps: vec![Step::Spaced],
                lead: Lead::Blanks(1),
            });
        };
        let config =
            serde_json::to_value(decoder).map_err(|error| Error::Load(format!("decoder: {error}")))?;
        let mut decoding = Self {
            steps: Vec::new(),
            lead: Lead::Keep,
        };
        let mut fused = false;
        decoding.add(&config, &mut fused)?;
        Ok(decoding)
    }

    fn add(&mut self, config: &Value, fused: &mut bool) -> Result<(), Error> {
        let kind = config["type"].as_str().unwrap_or("without a type");
        let unsupported = |why: &str| Error::Unsupported(format!("decoder {kind} {why}"));
        let text = |field: &str| config[field].as_str().map(ToOwned::to_owned).unwrap_or_default();
        let count = |field: &str| usize::try_from(config[field].as_u64().unwrap_or(0)).unwrap_or(0);
        if *fused && !matches!(kind, "Strip" | "Fuse" | "Sequence") {
            return Err(unsupported("after Fuse"));
        }
        match kind {
            "Sequence" => {
                for decoder in config["decoders"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default()
                {
                    self.add(decoder, fused)?;
                }
            }
            "ByteLevel" => self.steps.push(Step::ByteLevel),
            "ByteFallback" => self.steps.push(Step::ByteFallback),
            "Fuse" => *fused = true,
            "Replace" => {
                let from = config["pattern"]["String"]
                    .as_str()
                    .ok_or_else(|| unsupported("with a pattern"))?;
                self.steps.push(Step::Replace {
                    from: from.to_owned(),
                    to: text("content"),
                });
            }
            "Strip" if *fused => {
                if text("content") != " " || count("stop") > 0 {
                    return Err(unsupported("of anything but leading blanks"));
                }
                self.lead = Lead::Blanks(count("start"));
            }
            "Strip" => {
                let (start, stop) = (count("start"), count("stop"));
                self.steps.push(Step::Strip {
                    content: text("content"),
                    start,
                    stop,
                });
            }
            "Metaspace" => {
                self.steps.push(Step::Replace {
                    from: text("replacement"),
                    to: " ".to_owned(),
                });
                if config["prepend_scheme"].as_str() != Some("never") {
                    self.lead = Lead::FirstToken;
                }
            }
            "WordPiece" => {
                let cleanup = config["cleanup"].as_bool().unwrap_or(true);
                self.steps.push(Step::WordPiece {
                    prefix: text("prefix"),
                    cleanup,
                });
                self.lead = Lead::Blanks(1);
            }
            _ => return Err(unsupported("cannot be streamed")),
        }
        Ok(())
    }

    /// The bytes of one token that is not the first of its text.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        let mut text = Cow::Borrowed(token);
        for step in &self.steps {
            match step {
                Step::ByteLevel => {
                    if let Some(bytes) = byte_level_bytes(&text) {
                        return bytes;
                    }
                }
                Step::ByteFallback => {
                    if let Some(byte) = byte_token(&text) {
                        return vec![byte];
                    }
                }
                Step::Replace { from, to } if !from.is_empty() && text.contains(from.as_str()) => {
                    text = Cow::Owned(text.replace(from.as_str(), to));
                }
                Step::Replace { .. } => {}
                Step::Strip { content, start, stop } => {
                    text = Cow::Owned(strip(&text, content, *start, *stop).to_owned());
                }
                Step::WordPiece { prefix, cleanup } => text = Cow::Owned(word_piece(&text, prefix, *cleanup)),
                Step::Spaced => text = Cow::Owned(format!(" {text}")),
            }
        }
        text.into_owned().into_bytes()
    }

    /// The bytes of an added token: as it is written, but for the blanks that a text decoder makes of it.
    pub(super) fn added_bytes(&self, token: &str) -> Vec<u8> {
        if matches!(self.steps.as_slice(), [Step::ByteLevel]) {
            return token.as_bytes().to_vec();
        }
        self.bytes(token)
    }
}

fn strip<'a>(text: &'a str, content: &str, start: usize, stop: usize) -> &'a str {
    let mut text = text;
    if content.is_empty() {
        return text;
    }
    for _ in 0..start {
        text = text.strip_prefix(content).unwrap_or(text);
    }
    for _ in 0..stop {
        text = text.strip_suffix(content).unwrap_or(text);
    }
    text
}

fn word_piece(token: &str, prefix: &str, cleanup: bool) -> String {
    if let Some(rest) = token.strip_prefix(prefix).filter(|_| !prefix.is_empty()) {
        return rest.to_owned();
    }
    let closes = matches!(token, "." | "?" | "!" | "," | "n't" | "'m" | "'s" | "'ve" | "'re");
    if cleanup && closes {
        token.to_owned()
    } else {
        format!(" {token}")
    }
}

/// `<0x41>` is the byte 0x41.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// None if a character is none of the alphabet's 256.
fn byte_level_bytes(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

/// GPT-2 shows printable Latin-1 bytes as themselves and the other 68, in order, from U+0100.
pub(super) fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}
