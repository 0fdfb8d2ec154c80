//! One token: whether the login has signed it for this server, and who it is of.

use std::collections::BTreeMap;
use std::fmt;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Header, TokenData, Validation, decode, decode_header};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use thiserror::Error as ThisError;

use super::keys::KeySet;
use super::signature;

/// Tokens of logins with many groups have some KiB; a longer one is not looked at.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Claims of a token.
const CLAIMS_MAX: usize = 256;
/// What a token may say that it is: others, such as those of a logout, are signed by the same keys.
const TYPES: [&str; 4] = ["jwt", "at+jwt", "application/jwt", "application/at+jwt"];
/// Of who somebody is at the login (`OpenID` Connect Core 1.0, section 2).
const SUBJECT_BYTES_MAX: usize = 255;
const EMAIL_VERIFIED: &str = "email_verified";
/// The claim of which that tells.
const EMAIL: &str = "email";
/// Of the part before the first dot: an algorithm, the name of a key and a type.
const HEADER_BYTES_MAX: usize = 2048;

/// What a token must say.
#[derive(Clone, Debug)]
pub struct Expected {
    pub issuer: String,
    pub audience: String,
    /// The claim with the address.
    pub address_claim: String,
    /// How far the login's clock may be from ours.
    pub leeway_s: u64,
}

/// Why a token is not good. Its sender is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ThisError)]
pub enum BadToken {
    #[error("it is too long, or no token of this kind")]
    Malformed,
    #[error("it is signed by an algorithm that is not taken")]
    Algorithm,
    #[error("its key is none of the login's, or not for this")]
    Key,
    #[error("its signature does not fit")]
    Signature,
    #[error("another has issued it")]
    Issuer,
    #[error("it is for another audience")]
    Audience,
    #[error("it has expired, or does not say when it does")]
    Expired,
    #[error("it is not valid yet")]
    Early,
    #[error("it has no address, or one that is not verified")]
    Address,
    #[error("it does not say who its address is at the login")]
    Subject,
}

impl BadToken {
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::Algorithm,
        Self::Key,
        Self::Signature,
        Self::Issuer,
        Self::Audience,
        Self::Expired,
        Self::Early,
        Self::Address,
        Self::Subject,
    ];

    /// For metrics and the record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "token_malformed",
            Self::Algorithm => "token_algorithm",
            Self::Key => "token_key",
            Self::Signature => "token_signature",
            Self::Issuer => "token_issuer",
            Self::Audience => "token_audience",
            Self::Expired => "token_expired",
            Self::Early => "token_early",
            Self::Address => "token_address",
            Self::Subject => "token_subject",
        }
    }
}

/// Who a good token is of, and until when, Unix seconds.
pub struct Verified {
    pub address: String,
    /// Who that is at the login, for ever.
    pub subject: String,
    pub expires: i64,
}

/// The claims, each once: of two of one name nobody knows which was meant.
struct Claims(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Claims;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("claims, each once")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                let mut claims = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    if claims.insert(name, value).is_some() || claims.len() > CLAIMS_MAX {
                        return Err(A::Error::custom("a claim is there twice, or there are too many"));
                    }
                }
                Ok(Claims(claims))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

/// Verifies a token (RFC 7519, `OpenID` Connect Core 1.0). `now_s`, in Unix seconds, is what `iat` is compared with; `exp` and `nbf` go by
/// the system's clock.
///
/// # Errors
/// Why it is not good.
pub fn verify(token: &str, keys: &KeySet, expected: &Expected, now_s: i64) -> Result<Verified, BadToken> {
    if token.len() > TOKEN_BYTES_MAX || token.split('.').count() != 3 {
        return Err(BadToken::Malformed);
    }
    // It is read before anything is proven.
    if token.find('.').is_none_or(|end| end > HEADER_BYTES_MAX) {
        return Err(BadToken::Malformed);
    }
    let header = decode_header(token).map_err(|_| BadToken::Malformed)?;
    check_header(&header)?;
    let mut validation = Validation::new(header.alg);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    validation.set_issuer(&[&expected.issuer]);
    validation.set_audience(&[&expected.audience]);
    validation.validate_nbf = true;
    validation.leeway = expected.leeway_s;
    signature::install();
    // By its name alone: what a token brings of keys, or says of where they are, is its sender's.
    let mut verdict = Err(BadToken::Key);
    for key in keys.fitting(header.kid.as_deref(), header.alg) {
        verdict = decode(token, key, &validation).map_err(|error| why(&error));
        // Another key of this name may have signed it.
        if !matches!(verdict, Err(BadToken::Signature)) {
            break;
        }
    }
    let TokenData {
        claims: Claims(claims),
        ..
    } = verdict?;
    check_claims(&claims, expected, now_s)
}

fn check_header(header: &Header) -> Result<(), BadToken> {
    if !signature::is_taken(header.alg) {
        return Err(BadToken::Algorithm);
    }
    let named = header.typ.as_deref().map(str::to_ascii_lowercase);
    let known = named.is_none_or(|named| TYPES.contains(&named.as_str()));
    // What must be understood is not.
    if header.crit.is_some() || !known {
        return Err(BadToken::Malformed);
    }
    Ok(())
}

/// What the library leaves open.
fn check_claims(
    claims: &BTreeMap<String, Value>,
    expected: &Expected,
    now_s: i64,
) -> Result<Verified, BadToken> {
    // It would take one of a list, too.
    if claims.get("iss").and_then(Value::as_str) != Some(&expected.issuer) {
        return Err(BadToken::Issuer);
    }
    let seconds = |name: &str| claims.get(name).map(|value| value.as_f64().map(|s| s as i64));
    let leeway = i64::try_from(expected.leeway_s).unwrap_or(i64::MAX);
    match seconds("iat") {
        Some(None) => return Err(BadToken::Malformed),
        Some(Some(issued)) if issued > now_s.saturating_add(leeway) => return Err(BadToken::Early),
        Some(Some(_)) | None => {}
    }
    // Where people can set an address for themselves, one that nobody has verified may be another's.
    let verified = expected.address_claim != EMAIL
        || match claims.get(EMAIL_VERIFIED) {
            Some(Value::Bool(verified)) => *verified,
            // As some logins write it.
            Some(Value::String(text)) => text == "true",
            None | Some(_) => false,
        };
    let address = claims.get(&expected.address_claim).and_then(Value::as_str);
    let subject = claims.get("sub").and_then(Value::as_str);
    let subject = subject.filter(|subject| (1..=SUBJECT_BYTES_MAX).contains(&subject.len()));
    Ok(Verified {
        address: address.filter(|_| verified).ok_or(BadToken::Address)?.to_owned(),
        subject: subject.ok_or(BadToken::Subject)?.to_owned(),
        expires: seconds("exp").flatten().ok_or(BadToken::Expired)?,
    })
}

fn why(error: &Error) -> BadToken {
    match error.kind() {
        ErrorKind::InvalidSignature => BadToken::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => BadToken::Algorithm,
        ErrorKind::InvalidKeyFormat => BadToken::Key,
        ErrorKind::InvalidIssuer => BadToken::Issuer,
        ErrorKind::InvalidAudience => BadToken::Audience,
        ErrorKind::ExpiredSignature => BadToken::Expired,
        ErrorKind::ImmatureSignature => BadToken::Early,
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "iss" => BadToken::Issuer,
            "aud" => BadToken::Audience,
            _ => BadToken::Expired,
        },
        _ => BadToken::Malformed,
    }
}
