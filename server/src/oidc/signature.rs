//! The signatures of tokens: which are taken, of which keys. They are verified by ring: the library's own backends are aws-lc, and
//! RSA without a constant time.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{Error as BadSignature, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature::{
    self as by, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};

static RING: CryptoProvider = CryptoProvider {
    // Nothing is signed here.
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| verifier(*algorithm, key),
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has the library verify by this. It keeps the first provider that it is given, and there is no other.
pub(super) fn install() {
    let _ = RING.install_default();
}

/// The kind of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyType {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// All that is taken. What is signed by anything else was not signed by a login: never `none`, and never what a public key would be
/// the secret of.
static TAKEN: [(Algorithm, KeyType, Way); 9] = [
    (
        Algorithm::RS256,
        KeyType::Rsa,
        Way::Rsa(&by::RSA_PKCS1_2048_8192_SHA256),
    ),
    (
        Algorithm::RS384,
        KeyType::Rsa,
        Way::Rsa(&by::RSA_PKCS1_2048_8192_SHA384),
    ),
    (
        Algorithm::RS512,
        KeyType::Rsa,
        Way::Rsa(&by::RSA_PKCS1_2048_8192_SHA512),
    ),
    (
        Algorithm::PS256,
        KeyType::Rsa,
        Way::Rsa(&by::RSA_PSS_2048_8192_SHA256),
    ),
    (
        Algorithm::PS384,
        KeyType::Rsa,
        Way::Rsa(&by::RSA_PSS_2048_8192_SHA384),
    ),
    (
        Algorithm::PS512,
        KeyType::Rsa,
        Way::Rsa(&by::RSA_PSS_2048_8192_SHA512),
    ),
    (
        Algorithm::ES256,
        KeyType::P256,
        Way::Curve(&by::ECDSA_P256_SHA256_FIXED),
    ),
    (
        Algorithm::ES384,
        KeyType::P384,
        Way::Curve(&by::ECDSA_P384_SHA384_FIXED),
    ),
    (Algorithm::EdDSA, KeyType::Ed25519, Way::Curve(&by::ED25519)),
];

impl KeyType {
    /// What a key of this kind may have signed by.
    pub(super) fn algorithms(self) -> Vec<Algorithm> {
        let own = TAKEN.iter().filter(|(_, of, _)| *of == self);
        own.map(|(algorithm, ..)| *algorithm).collect()
    }
}

/// Whether signatures by this algorithm are looked at.
pub(super) fn is_taken(algorithm: Algorithm) -> bool {
    TAKEN.iter().any(|(taken, ..)| *taken == algorithm)
}

/// How a key of this family verifies.
#[derive(Clone, Copy)]
enum Way {
    Rsa(&'static RsaParameters),
    Curve(&'static dyn VerificationAlgorithm),
}

struct ByRing {
    algorithm: Algorithm,
    way: Way,
    key: DecodingKey,
}

fn verifier(algorithm: Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let taken = TAKEN.iter().find(|(taken, ..)| *taken == algorithm);
    let Some((_, _, way)) = taken else {
        return Err(ErrorKind::UnsupportedAlgorithm.into());
    };
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    Ok(Box::new(ByRing {
        algorithm,
        way: *way,
        key: key.clone(),
    }))
}

impl Verifier<Vec<u8>> for ByRing {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), BadSignature> {
        let verified = match (self.way, self.key.kind()) {
            (Way::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Way::Curve(algorithm), DecodingKeyKind::SecretOrDer(point)) => {
                UnparsedPublicKey::new(algorithm, point).verify(message, signature)
            }
            _ => return Err(BadSignature::new()),
        };
        verified.map_err(|_| BadSignature::new())
    }
}

impl JwtVerifier for ByRing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
