//! Authorities, what they sign, and clients that trust one of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a certificate that ends with that year.
    pub(crate) fn sign(&self, name: &str, last_year: i32) -> Pair {
        self.sign_for(name, 1975, last_year)
    }

    /// Signs one that begins with that year.
    pub(crate) fn begin(&self, name: &str, first_year: i32) -> Pair {
        self.sign_for(name, first_year, 4000)
    }

    fn sign_for(&self, name: &str, first_year: i32, last_year: i32) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(first_year, 1, 1);
        params.not_after = date_time_ymd(last_year + 1, 1, 1);
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A folder with the files that a server is started with.
pub(crate) struct Folder {
    pub(crate) authority: Authority,
    place: TempDir,
}

impl Folder {
    /// With a certificate of `localhost` that an authority of its own has signed, which also signs for clients.
    pub(crate) fn new() -> Self {
        let authority = Authority::new("own");
        let folder = Self {
            place: tempfile::tempdir().unwrap(),
            authority,
        };
        folder.write("ca.pem", &folder.authority.pem());
        folder.show(&folder.authority.sign("localhost", 4000));
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// Puts this pair in the place of the server's own.
    pub(crate) fn show(&self, pair: &Pair) {
        self.write("certificate.pem", &pair.certificate);
        self.write("key.pem", &pair.key);
    }

    /// The options that name the files, and further ones.
    pub(crate) fn arguments(&self, more: &[&str]) -> Vec<String> {
        let option = |name: &str, file| [name.to_owned(), self.path(file).to_str().unwrap().to_owned()];
        let [certificate, key] = [
            option("--tls-certificate", "certificate.pem"),
            option("--tls-key", "key.pem"),
        ];
        let more = more.iter().map(|text| (*text).to_owned());
        certificate.into_iter().chain(key).chain(more).collect()
    }
}

/// What a client knows and says.
#[derive(Clone)]
pub(crate) struct Client<'a> {
    pub(crate) trusts: &'a Authority,
    pub(crate) shows: Option<&'a Pair>,
    pub(crate) speaks: &'static [&'static [u8]],
    pub(crate) version: &'static SupportedProtocolVersion,
}

impl<'a> Client<'a> {
    pub(crate) fn of(trusts: &'a Authority) -> Self {
        Self {
            trusts,
            shows: None,
            speaks: &[],
            version: &TLS13,
        }
    }

    pub(crate) fn older(self) -> Self {
        Self {
            version: &TLS12,
            ..self
        }
    }

    pub(crate) async fn connect(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.trusts.pem())).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.shows {
            Some(pair) => {
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                let chain = vec![certificate(&pair.certificate)];
                config.with_client_auth_cert(chain, key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = self.speaks.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

pub(crate) fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}
