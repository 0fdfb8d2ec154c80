//! A login that signs tokens, well and badly.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rempart_governance::now_s;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://login.example.org/realm";
pub(crate) const AUDIENCE: &str = "rempart";

/// A key of the login.
pub(crate) enum Signer {
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

pub(crate) fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    /// Of 2048 bits, always the same one: ring makes none. It was made for this and is used for nothing else.
    pub(crate) fn rsa() -> Self {
        let der = include_bytes!("issuer-rsa.der");
        Self::Rsa(Box::new(RsaKeyPair::from_pkcs8(der).unwrap()))
    }

    pub(crate) fn p256() -> Self {
        Self::ec(&ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    pub(crate) fn p384() -> Self {
        Self::ec(&ECDSA_P384_SHA384_FIXED_SIGNING)
    }

    fn ec(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::Ec(EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref(), &random).unwrap())
    }

    pub(crate) fn ed() -> Self {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed(Ed25519KeyPair::from_pkcs8(der.as_ref()).unwrap())
    }

    /// The bytes of the public key.
    pub(crate) fn public(&self) -> Vec<u8> {
        match self {
            Self::Rsa(key) => key.public().as_ref().to_vec(),
            Self::Ec(key) => key.public_key().as_ref().to_vec(),
            Self::Ed(key) => key.public_key().as_ref().to_vec(),
        }
    }

    /// As a login publishes it.
    pub(crate) fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                let public: RsaPublicKeyComponents<Vec<u8>> = key.public().into();
                json!({
                    "kty": "RSA", "kid": id, "use": "sig", "n": base64(public.n),
                    "e": base64(public.e), "x5c": ["MIIC"],
                })
            }
            Self::Ec(_) => {
                let public = self.public();
                let (x, y) = public[1..].split_at(public.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "kid": id, "crv": curve, "x": base64(x), "y": base64(y)})
            }
            Self::Ed(_) => {
                json!({"kty": "OKP", "kid": id, "crv": "Ed25519", "x": base64(self.public()), "alg": "EdDSA"})
            }
        }
    }

    /// A token of these parts, as they are written.
    pub(crate) fn sign(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64(header), base64(claims));
        let read: Value = serde_json::from_str(header).unwrap_or_default();
        let algorithm = read["alg"].as_str().unwrap_or_default();
        let random = SystemRandom::new();
        let signature = match self {
            Self::Rsa(key) => {
                let padding: &dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(padding, &random, message.as_bytes(), &mut signature)
                    .unwrap();
                signature
            }
            Self::Ec(key) => key.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message.as_bytes()).as_ref().to_vec(),
        };
        format!("{message}.{}", base64(signature))
    }

    /// A good token of this algorithm and person, with other claims in the place of some; `null` takes one away.
    pub(crate) fn token(&self, algorithm: &str, id: &str, claims: Value) -> String {
        let header = json!({"alg": algorithm, "kid": id, "typ": "JWT"});
        self.sign(&header.to_string(), &good_claims(claims).to_string())
    }
}

pub(crate) fn good_claims(other: Value) -> Value {
    let now = now_s();
    let mut claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "1234", "iat": now, "nbf": now, "exp": now + 300,
        "email": "anna@example.org", "email_verified": true,
    });
    let Value::Object(other) = other else {
        panic!("claims are an object")
    };
    for (name, value) in other {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(&name)),
            value => claims[name] = value,
        }
    }
    claims
}

/// The set of these keys, as a file has it.
pub(crate) fn set(keys: &[Value]) -> Vec<u8> {
    json!({"keys": keys}).to_string().into_bytes()
}
