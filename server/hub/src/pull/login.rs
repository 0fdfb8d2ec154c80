//! `rempart oidc fetch`: the public keys that a login publishes (`OpenID` Connect Discovery 1.0), for the file that a server reads.
//!
//! The login's description says where its keys are. Both come over HTTPS, or from this machine; neither may be somewhere else than
//! it was asked for: redirects are not followed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, Url, redirect};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use super::alone;
use super::hub::{USER_AGENT, is_loopback};
use crate::file;

/// Where a login describes itself, below its address (`OpenID` Connect Discovery 1.0, section 4).
const DESCRIPTION: &str = ".well-known/openid-configuration";
/// Bytes of that: some KiB in use.
const DESCRIPTION_BYTES_MAX: u64 = 256 << 10;
const CA_BYTES_MAX: u64 = 1 << 20;
/// Bytes of an address that is told again.
const ADDRESS_BYTES_MAX: usize = 2048;
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// For each of the two answers, from the first byte that is sent to the last that comes.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Whose keys, and who vouches for who answers.
#[derive(Debug, Clone, Copy)]
pub struct LoginRequest<'a> {
    /// As tokens and the description name it.
    pub issuer: &'a str,
    /// Authorities in PEM that alone may have signed its certificate; `None`: those of the system.
    pub ca: Option<&'a Path>,
    /// Most bytes of a key set.
    pub key_set_bytes_max: u64,
}

/// What a login publishes, as it came: nothing of it was checked.
#[derive(Debug)]
pub struct LoginKeys {
    /// Where it came from.
    pub address: String,
    pub bytes: Vec<u8>,
}

/// Why there are no keys. Never has what an answer says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--oidc-issuer {issuer}: {reason}")]
    Issuer { issuer: String, reason: &'static str },
    #[error("--ca {}: {reason}", path.display())]
    Ca { path: PathBuf, reason: String },
    #[error("{address}: {reason}")]
    Answer { address: String, reason: String },
    #[error("the fetching stopped on a defect of this program: {0}")]
    Internal(&'static str),
}

#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

/// Fetches what a login publishes. Blocks; may be called inside an asynchronous runtime, on a thread that may block.
///
/// # Errors
/// See [`Error`].
pub fn fetch(request: LoginRequest<'_>) -> Result<LoginKeys, Error> {
    let address = description_address(request.issuer)?;
    let client = client(&address, request.ca)?;
    alone(|| run(&client, &address, request)).map_err(Error::Internal)?
}

async fn run(client: &Client, address: &Url, request: LoginRequest<'_>) -> Result<LoginKeys, Error> {
    let fail = |reason| Error::Answer {
        address: address.to_string(),
        reason,
    };
    let text = get(client, address, DESCRIPTION_BYTES_MAX).await?;
    let description: Description = serde_json::from_slice(&text).map_err(|_| {
        fail("this is no description of a login: an object with `issuer` and `jwks_uri`".into())
    })?;
    // Another's keys would let another's tokens in.
    if description.issuer != request.issuer {
        return Err(fail(format!(
            "it describes another login than {}: `issuer` must be the same to the letter, also in its last `/`",
            request.issuer
        )));
    }
    let keys = Some(&description.jwks_uri).filter(|keys| keys.len() <= ADDRESS_BYTES_MAX);
    let keys = keys.and_then(|keys| Url::parse(keys).ok());
    let keys = keys.filter(|keys| is_kept_from_others(keys, address));
    let keys = keys.ok_or_else(|| {
        fail("its `jwks_uri` is none: https, or http on this machine where --oidc-issuer is, too, without a password".into())
    })?;
    let bytes = get(client, &keys, request.key_set_bytes_max).await?;
    Ok(LoginKeys {
        address: keys.to_string(),
        bytes,
    })
}

/// Where the description of a login is.
fn description_address(issuer: &str) -> Result<Url, Error> {
    let refuse = |reason| Error::Issuer {
        // One with a password in it must not be repeated.
        issuer: if issuer.contains('@') { "…" } else { issuer }.to_owned(),
        reason,
    };
    let url = Url::parse(issuer).map_err(|_| refuse("it is no URL"))?;
    if !is_kept_from_others(&url, &url) {
        return Err(refuse(
            "it must begin with https://, or on this machine http://, and have neither user nor password",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("it may not have a query or fragment"));
    }
    let address = format!("{}/{DESCRIPTION}", issuer.trim_end_matches('/'));
    Url::parse(&address).map_err(|_| refuse("it is no URL"))
}

/// Whether nobody on the way can answer in the place of who is asked: TLS, or this machine. Who began with TLS stays with it.
fn is_kept_from_others(url: &Url, began: &Url) -> bool {
    let safe = match url.scheme() {
        "https" => url.host_str().is_some(),
        "http" => began.scheme() == "http" && is_loopback(url),
        _ => false,
    };
    safe && url.username().is_empty() && url.password().is_none()
}

fn client(address: &Url, ca: Option<&Path>) -> Result<Client, Error> {
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        .redirect(redirect::Policy::none());
    if let Some(ca) = ca {
        builder = builder.tls_certs_only(authorities(ca)?);
    }
    if is_loopback(address) {
        builder = builder.no_proxy();
    }
    builder
        .build()
        .map_err(|_| Error::Internal("the HTTP client could not be built"))
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, Error> {
    let refuse = |reason: &str| Error::Ca {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let read = file::read(path, CA_BYTES_MAX).map_err(|error| refuse(&error.to_string()))?;
    let text = read.ok_or_else(|| refuse(&format!("more than {CA_BYTES_MAX} bytes")))?;
    let damaged = || refuse("damaged PEM");
    let certificate = |der: Result<CertificateDer<'_>, _>| {
        let der = der.map_err(|_| damaged())?;
        Certificate::from_der(&der).map_err(|_| damaged())
    };
    let all = CertificateDer::pem_slice_iter(&text)
        .map(certificate)
        .collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() {
        return Err(refuse("no certificate in it (`-----BEGIN CERTIFICATE-----`)"));
    }
    Ok(all)
}

/// The body of an answer.
async fn get(client: &Client, address: &Url, bytes_max: u64) -> Result<Vec<u8>, Error> {
    let fail = |reason| Error::Answer {
        address: address.to_string(),
        reason,
    };
    let broken = |error: reqwest::Error| fail(why(&error));
    let mut response = client.get(address.clone()).send().await.map_err(broken)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(fail(format!(
            "it answered {}, and redirects are not followed",
            status.as_u16()
        )));
    }
    if !status.is_success() {
        return Err(fail(format!("it answered {}", status.as_u16())));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > bytes_max {
            return Err(fail(format!("its answer has more than {bytes_max} bytes")));
        }
    }
    Ok(body)
}

/// Why there is no answer, in words of the system or of TLS.
fn why(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    let mut said = None;
    while let Some(source) = cause.source() {
        cause = source;
        said = cause.downcast_ref::<std::io::Error>().or(said);
    }
    let what = if error.is_connect() {
        "the connection could not be made"
    } else {
        "the connection was cut"
    };
    said.map_or_else(|| what.to_owned(), |said| format!("{what}: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_asked_at_its_own_address() {
        for (issuer, expected) in [
            (
                "https://a.example",
                "https://a.example/.well-known/openid-configuration",
            ),
            (
                "https://a.example/",
                "https://a.example/.well-known/openid-configuration",
            ),
            (
                "https://a.example/realms/b",
                "https://a.example/realms/b/.well-known/openid-configuration",
            ),
            (
                "http://[::1]:8/",
                "http://[::1]:8/.well-known/openid-configuration",
            ),
        ] {
            assert_eq!(description_address(issuer).unwrap().as_str(), expected);
        }
        for bad in [
            "",
            "a.example",
            "http://a.example",
            "ftp://127.0.0.1",
            "https://a.example/?b",
            "https://a.example/#b",
            "https://anna@a.example",
        ] {
            assert!(description_address(bad).is_err(), "{bad}");
        }
        let told = description_address("https://anna:hunter2@a.example")
            .unwrap_err()
            .to_string();
        assert!(!told.contains("hunter2"), "{told}");
    }

    #[test]
    fn keys_stay_on_tls_or_on_this_machine() {
        let is = |url: &str, began: &str| {
            is_kept_from_others(&Url::parse(url).unwrap(), &Url::parse(began).unwrap())
        };
        assert!(is("https://keys.example/a", "https://a.example"));
        assert!(is("http://127.0.0.1/a", "http://localhost"));
        assert!(is("https://keys.example/a", "http://localhost"));
        for (url, began) in [
            ("http://127.0.0.1/a", "https://a.example"),
            ("http://keys.example/a", "http://localhost"),
            ("file:///etc/passwd", "http://localhost"),
            ("https://anna:b@keys.example/a", "https://a.example"),
        ] {
            assert!(!is(url, began), "{url} {began}");
        }
    }
}
