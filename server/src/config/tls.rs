//! TLS of the interface that clients use, and who may reach that interface.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::Error;

/// Options of TLS. All of them name files, which are read at start and again at every SIGHUP.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Certificate that the server shows, in PEM, and behind it those that lead to its authority; with it there is TLS alone
    /// on --bind [default: there is none]
    #[arg(long, env = "REMPART_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of the certificate, in PEM, without a passphrase
    #[arg(long, env = "REMPART_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Certificates of authorities, in PEM: clients must show a certificate that one of them has signed
    #[arg(long, env = "REMPART_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct TlsSettings {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// `None`: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

impl TlsArgs {
    pub(super) fn check(self) -> Result<Option<TlsSettings>, Error> {
        match (self.tls_certificate, self.tls_key, self.tls_client_ca) {
            (Some(certificate), Some(key), client_ca) => Ok(Some(TlsSettings {
                certificate,
                key,
                client_ca,
            })),
            (None, None, None) => Ok(None),
            (certificate, key, client_ca) => Err(Error::HalfOfTls {
                given: match (&certificate, &client_ca) {
                    (Some(_), _) => "--tls-certificate",
                    (None, Some(_)) if key.is_none() => "--tls-client-ca",
                    (None, _) => "--tls-key",
                },
                lacking: match (certificate, key) {
                    (Some(_), _) => "--tls-key",
                    (None, Some(_)) => "--tls-certificate",
                    (None, None) => "--tls-certificate and --tls-key",
                },
            }),
        }
    }
}

/// What stands between a server and whoever reaches it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guards {
    pub(super) tls: bool,
    pub(super) keys: bool,
}

impl Guards {
    /// Refuses an address that other machines reach while a guard is missing.
    pub(super) fn check(self, bind: SocketAddr) -> Result<(), Error> {
        if bind.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let (lacks, give) = match (self.tls, self.keys) {
            (true, true) => return Ok(()),
            (true, false) => ("no keys", "--database"),
            (false, true) => ("no TLS", "--tls-certificate and --tls-key"),
            (false, false) => (
                "neither TLS nor keys",
                "--tls-certificate, --tls-key and --database",
            ),
        };
        Err(Error::RemoteBind { bind, lacks, give })
    }
}
