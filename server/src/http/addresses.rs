//! How many connections one address has, so that one machine cannot take the places of all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who is counted as one. A host of IPv6 usually has a /64 to itself, and with it as many addresses as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Origin {
    V4(Ipv4Addr),
    /// The first half of the address.
    V6([u16; 4]),
}

impl Origin {
    /// `None`: this machine itself, where a proxy may stand for everybody.
    fn of(address: IpAddr) -> Option<Self> {
        // On a socket of both families, IPv4 comes as a part of IPv6.
        match address.to_canonical() {
            address if address.is_loopback() => None,
            IpAddr::V4(address) => Some(Self::V4(address)),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Some(Self::V6([a, b, c, d]))
            }
        }
    }
}

/// The open connections of each address. Cheap to clone.
#[derive(Clone)]
pub(super) struct Addresses {
    each_max: usize,
    /// Holds no address without a connection: there are never more entries than open connections.
    open: Arc<Mutex<HashMap<Origin, usize>>>,
}

impl Addresses {
    pub(super) fn new(each_max: usize) -> Self {
        Self {
            each_max,
            open: Arc::default(),
        }
    }

    /// A place for a connection from this address, or `None` if it has its number already.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Place> {
        let origin = Origin::of(address);
        if let Some(origin) = origin {
            let mut open = self.open();
            let count = open.get(&origin).copied().unwrap_or(0);
            if count >= self.each_max {
                return None;
            }
            open.insert(origin, count + 1);
        }
        Some(Place {
            origin,
            addresses: self.clone(),
        })
    }

    fn leave(&self, origin: Origin) {
        let mut open = self.open();
        let count = open
            .get_mut(&origin)
            .expect("a place is counted while it is held");
        *count -= 1;
        if *count == 0 {
            open.remove(&origin);
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Origin, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place among those of its address, given back when dropped.
pub(super) struct Place {
    origin: Option<Origin>,
    addresses: Addresses,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(origin) = self.origin {
            self.addresses.leave(origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(addresses: &Addresses, address: &str) -> Option<Place> {
        addresses.enter(address.parse().unwrap())
    }

    #[test]
    fn each_address_has_its_number_and_no_more() {
        let addresses = Addresses::new(2);
        let first = enter(&addresses, "10.0.0.7");
        let mapped = enter(&addresses, "::ffff:10.0.0.7");
        assert!(first.is_some() && mapped.is_some());
        assert!(enter(&addresses, "10.0.0.7").is_none());
        assert!(
            enter(&addresses, "10.0.0.8").is_some(),
            "another is not concerned"
        );
        drop(mapped);
        assert!(enter(&addresses, "10.0.0.7").is_some(), "a place became free");
    }

    #[test]
    fn ipv6_counts_by_its_first_half() {
        let addresses = Addresses::new(1);
        let _held = enter(&addresses, "2001:db8:0:1::1").unwrap();
        assert!(enter(&addresses, "2001:db8:0:1:ffff::2").is_none());
        assert!(enter(&addresses, "2001:db8:0:2::1").is_some());
    }

    #[test]
    fn loopback_may_stand_for_everybody() {
        let addresses = Addresses::new(1);
        let all = ["127.0.0.1", "127.0.0.1", "::1", "::1", "::ffff:127.0.0.1"];
        let held: Vec<_> = all.map(|address| enter(&addresses, address)).into();
        assert!(held.iter().all(Option::is_some));
        assert!(addresses.open().is_empty());
    }

    #[test]
    fn an_address_without_connections_is_forgotten() {
        let addresses = Addresses::new(8);
        let held: Vec<_> = (0..1000_u32)
            .map(|n| addresses.enter(Ipv4Addr::from_bits(0x0a00_0000 + n).into()))
            .collect();
        assert_eq!(addresses.open().len(), 1000);
        drop(held);
        assert!(addresses.open().is_empty());
    }
}
