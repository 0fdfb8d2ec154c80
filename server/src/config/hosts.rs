//! Which hosts a request may name. A page of the web can make its own name point at this machine and then read what a
//! server here answers; the `Host` header still carries that name.

use std::net::{IpAddr, SocketAddr};

use super::Error;

/// Names and addresses that the `Host` header may carry, with any port.
#[derive(Debug, Clone)]
pub struct AllowedHosts {
    /// In lower case.
    names: Vec<String>,
    bind: IpAddr,
}

impl AllowedHosts {
    /// `None`, which allows everything, for an address that other machines reach by names this server cannot know.
    pub(super) fn new(bind: SocketAddr, names: Vec<String>) -> Result<Option<Self>, Error> {
        let bind = bind.ip().to_canonical();
        if names.is_empty() && !bind.is_loopback() {
            return Ok(None);
        }
        let names = names.into_iter().map(|name| match host(&name) {
            Some(host) if host.len() == name.len() && !host.is_empty() => Ok(plain(host)),
            _ => Err(Error::AllowedHost { name }),
        });
        Ok(Some(Self {
            names: names.collect::<Result<_, _>>()?,
            bind,
        }))
    }

    /// Whether `authority`, a host with or without a port, is one of them, or this machine itself.
    pub fn allows(&self, authority: &str) -> bool {
        let Some(host) = host(authority).map(plain) else {
            return false;
        };
        let address: Option<IpAddr> = host.parse().ok();
        let own =
            |address: IpAddr| address.is_loopback() || (address == self.bind && !self.bind.is_unspecified());
        let address = address.map(|address| address.to_canonical());
        host == "localhost" || address.is_some_and(own) || self.names.contains(&host)
    }
}

/// The host of an authority without its port, brackets and all; `None` if it is none.
fn host(authority: &str) -> Option<&str> {
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, port) = authority.split_at(end);
    let port = port.strip_prefix(':').unwrap_or(port);
    let sane = |b: u8| b.is_ascii_alphanumeric() || b"._-[]:".contains(&b);
    (port.bytes().all(|b| b.is_ascii_digit()) && host.bytes().all(sane)).then_some(host)
}

/// The form that is compared: an address as it is usually written, a name in lower case without the root's dot.
fn plain(host: &str) -> String {
    let host = host.strip_suffix('.').unwrap_or(host);
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = inside.unwrap_or(host);
    host.parse::<IpAddr>()
        .map_or_else(|_| host.to_ascii_lowercase(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(bind: &str, names: &[&str]) -> Option<AllowedHosts> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        AllowedHosts::new(bind.parse().unwrap(), names).unwrap()
    }

    #[test]
    fn this_machine_is_allowed_with_any_port() {
        let hosts = hosts("127.0.0.1:8080", &[]).unwrap();
        for host in [
            "localhost",
            "LocalHost:8080",
            "localhost.:1",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:9",
            "[0:0:0:0:0:0:0:1]",
        ] {
            assert!(hosts.allows(host), "{host}");
        }
        for host in [
            "",
            ":80",
            "evil.example",
            "localhost.evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "127.0.0.1:8080:1",
            "127.0.0.1@evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
            "[::1",
            "[::1]x",
            "localhost:x",
            "localhost ",
        ] {
            assert!(!hosts.allows(host), "{host}");
        }
    }

    #[test]
    fn names_are_added() {
        assert!(hosts("0.0.0.0:8080", &[]).is_none(), "names nobody can know");
        let mapped = hosts("[::ffff:127.0.0.1]:8080", &[]).expect("it is this machine alone");
        assert!(mapped.allows("[::ffff:127.0.0.1]:8080") && !mapped.allows("evil.example"));
        let hosts = hosts("10.0.0.7:8080", &["LLM.example", "10.0.0.8", "[fd00::1]"]).unwrap();
        for host in [
            "llm.example",
            "LLM.EXAMPLE.:443",
            "10.0.0.7",
            "10.0.0.8:1",
            "[FD00:0::1]:80",
            "localhost",
        ] {
            assert!(hosts.allows(host), "{host}");
        }
        assert!(!hosts.allows("other.example") && !hosts.allows("10.0.0.9"));
    }

    #[test]
    fn an_allowed_host_is_a_name_alone() {
        for name in ["", "a:80", "http://a", "a/b", "*", "a b", "[::1]:80"] {
            let refused = AllowedHosts::new("127.0.0.1:1".parse().unwrap(), vec![name.to_owned()]);
            assert!(matches!(refused, Err(Error::AllowedHost { .. })), "{name}");
        }
    }
}
