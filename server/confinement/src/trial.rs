//! Tries to get out of the walls, as whoever took the process over would.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use libc::{c_int, c_long};

use crate::{Attempt, Confined, Error, Reach, Wall, calls, ports};

/// An attempt that nothing stops is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of documentation, so that nobody has them (RFC 5737, RFC 3849).
const NOWHERE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
);
/// Sockets of the kernel, of a card's frames, of the host of a virtual machine, and of radio.
const FAMILIES: [(&str, c_int); 5] = [
    ("AF_NETLINK", libc::AF_NETLINK),
    ("AF_PACKET", libc::AF_PACKET),
    ("AF_VSOCK", libc::AF_VSOCK),
    ("AF_XDP", libc::AF_XDP),
    ("AF_BLUETOOTH", libc::AF_BLUETOOTH),
];

/// Confines the calling thread as [`confine`](crate::confine) confines a process, and tries every way out that is known:
/// TCP once while there is Landlock alone, if the kernel has it, and all once both walls are up. `elsewhere` must be listening.
///
/// # Errors
/// Where the thread can't be confined.
pub fn try_everything(reach: Reach, elsewhere: SocketAddrV4) -> Result<(Confined, Vec<Attempt>), Error> {
    // As a connection is that a client made: a socket that no filter can refuse any more.
    let open = Call::Socket(libc::AF_INET, libc::SOCK_STREAM, 0).make()?;
    let landlock_abi = ports::restrict(reach)?;
    let mut attempts = Vec::new();
    let mut attempt = |what: String, result: Trial| attempts.push(judge(what, result));
    if landlock_abi.is_some() {
        for address in addresses(reach, elsewhere) {
            attempt(format!("TCP to {address}, without seccomp"), connect(address));
        }
        let listen = timed(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        attempt("listening on another port, without seccomp".to_owned(), listen);
    }

    calls::restrict(reach)?;
    for address in addresses(reach, elsewhere) {
        attempt(format!("TCP to {address}"), connect(address));
    }
    let calls = [
        (
            "TCP by a socket that was open before",
            Call::Connect(open, elsewhere),
        ),
        (
            "TCP Fast Open by a socket that was open before",
            Call::FastOpen(open, elsewhere),
        ),
        (
            "MPTCP",
            Call::Socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        ),
        (
            "SCTP",
            Call::Socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        ),
        (
            "raw IPv4",
            Call::Socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ),
        (
            "raw IPv6",
            Call::Socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        ),
        ("io_uring", Call::Ring),
        ("a socket of another process", Call::TakeSocket),
        ("DNS by the kernel's keyring", Call::RequestKey),
        ("a mount of another machine's disk", Call::Mount),
        #[cfg(target_arch = "x86_64")]
        ("TCP by calls of x32", Call::OtherSet),
    ];
    for (what, call) in calls {
        attempt(what.to_owned(), timed(|| call.make()));
    }
    for (name, family) in FAMILIES {
        let call = Call::Socket(family, libc::SOCK_RAW, 0);
        attempt(name.to_owned(), timed(|| call.make()));
    }
    let udp = |any: SocketAddr| timed(|| UdpSocket::bind(any));
    attempt(
        "UDP over IPv4, and so DNS".to_owned(),
        udp((Ipv4Addr::UNSPECIFIED, 0).into()),
    );
    attempt("UDP over IPv6".to_owned(), udp((Ipv6Addr::UNSPECIFIED, 0).into()));
    let listen = timed(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    attempt("listening on another port".to_owned(), listen);
    Ok((Confined { landlock_abi }, attempts))
}

/// Where no connection may come about.
fn addresses(reach: Reach, elsewhere: SocketAddrV4) -> [SocketAddr; 3] {
    let port = if reach == Reach::Port(443) { 80 } else { 443 };
    let (v4, v6) = NOWHERE;
    [elsewhere.into(), (v4, port).into(), (v6, port).into()]
}

const ADDRESS_BYTES: u32 = size_of::<libc::sockaddr_in>() as u32;

type Trial = (io::Result<()>, Duration);

fn timed<T>(action: impl FnOnce() -> io::Result<T>) -> Trial {
    let began = Instant::now();
    let result = action().map(drop);
    (result, began.elapsed())
}

fn connect(address: SocketAddr) -> Trial {
    timed(|| TcpStream::connect_timeout(&address, PATIENCE))
}

fn judge(what: String, (result, took): Trial) -> Attempt {
    let (stopped_by, said) = match result {
        Ok(()) => (None, "it succeeded".to_owned()),
        Err(error) => {
            let wall = match error.raw_os_error() {
                Some(libc::EPERM) => Some(Wall::Seccomp),
                Some(libc::EACCES) => Some(Wall::Landlock),
                Some(libc::EAFNOSUPPORT) => Some(Wall::Kernel),
                _ => None,
            };
            (wall, error.to_string())
        }
    };
    Attempt {
        what,
        stopped_by,
        said,
        took,
    }
}

/// Calls that no library makes. None of them writes to this process's memory.
#[derive(Clone, Copy)]
enum Call {
    /// Family, kind and protocol.
    Socket(c_int, c_int, c_int),
    Connect(c_long, SocketAddrV4),
    FastOpen(c_long, SocketAddrV4),
    Ring,
    TakeSocket,
    RequestKey,
    Mount,
    #[cfg(target_arch = "x86_64")]
    OtherSet,
}

impl Call {
    /// Descriptors that it gives stay open until the process ends, which in a trial is soon.
    fn make(self) -> io::Result<c_long> {
        let address = self.address();
        let (at, bytes) = (&raw const address as c_long, c_long::from(ADDRESS_BYTES));
        let (number, arguments) = match self {
            Self::Socket(family, kind, protocol) => (
                libc::SYS_socket,
                [family.into(), kind.into(), protocol.into(), 0, 0, 0],
            ),
            Self::Connect(socket, _) => (libc::SYS_connect, [socket, at, bytes, 0, 0, 0]),
            Self::FastOpen(socket, _) => {
                let flags = libc::MSG_FASTOPEN.into();
                (libc::SYS_sendto, [socket, at, 1, flags, at, bytes])
            }
            // Without the address of its parameters it could not be made anyhow.
            Self::Ring => (libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
            // There is no process of that descriptor.
            Self::TakeSocket => (libc::SYS_pidfd_getfd, [-1, 0, 0, 0, 0, 0]),
            // There are no names at that address.
            Self::RequestKey => (libc::SYS_request_key, [0, 0, 0, 0, 0, 0]),
            Self::Mount => (libc::SYS_fsopen, [0, 0, 0, 0, 0, 0]),
            #[cfg(target_arch = "x86_64")]
            Self::OtherSet => (
                libc::SYS_socket | c_long::from(calls::X32),
                [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0],
            ),
        };
        let [first, second, third, fourth, fifth, sixth] = arguments;
        // SAFETY: the calls above read at most `address`, which lives until they return, and write nothing.
        match unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) } {
            -1 => Err(io::Error::last_os_error()),
            result => Ok(result),
        }
    }

    fn address(self) -> libc::sockaddr_in {
        let (Self::Connect(_, address) | Self::FastOpen(_, address)) = self else {
            return address_of(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        };
        address_of(address)
    }
}

fn address_of(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.ip().octets()),
        },
        sin_zero: [0; 8],
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use super::*;

    /// Walls hold a thread and what it starts, and end with it.
    fn in_a_thread<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> T {
        thread::Builder::new().spawn(action).unwrap().join().unwrap()
    }

    fn elsewhere() -> (TcpListener, SocketAddrV4) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
            unreachable!("it was bound so");
        };
        (listener, address)
    }

    fn confined<T: Send + 'static>(reach: Reach, action: impl FnOnce() -> T + Send + 'static) -> T {
        in_a_thread(move || {
            ports::restrict(reach).unwrap();
            calls::restrict(reach).unwrap();
            action()
        })
    }

    #[test]
    fn every_way_out_is_shut_and_at_once() {
        for reach in [
            Reach::Nobody,
            Reach::UnixSockets,
            Reach::Port(5432),
            Reach::Port(443),
        ] {
            let (listener, address) = elsewhere();
            let (confined, attempts) = in_a_thread(move || try_everything(reach, address)).unwrap();
            assert!(confined.landlock_abi >= Some(4));
            assert!(attempts.len() > 20);
            for attempt in attempts {
                assert!(attempt.stopped_by.is_some(), "{reach}: {attempt:?}");
                assert!(attempt.took < Duration::from_millis(500), "{reach}: {attempt:?}");
            }
            assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn without_walls_the_trial_would_notice() {
        let (listener, address) = elsewhere();
        let reached = judge("TCP".to_owned(), connect(address.into()));
        assert_eq!(reached.stopped_by, None);
        listener.accept().unwrap();
        let open = Call::Socket(libc::AF_INET, libc::SOCK_STREAM, 0).make().unwrap();
        Call::Connect(open, address).make().unwrap();
        listener.accept().unwrap();
        let ring = judge("io_uring".to_owned(), timed(|| Call::Ring.make()));
        assert_ne!(ring.stopped_by, Some(Wall::Landlock), "{ring:?}");
        let taken = judge("another's".to_owned(), timed(|| Call::TakeSocket.make()));
        assert_eq!(taken.stopped_by, None, "{taken:?}");
    }

    #[test]
    fn the_port_of_the_database_stays_open_and_no_other() {
        let (listener, address) = elsewhere();
        let (_other, others) = elsewhere();
        let reached = confined(Reach::Port(address.port()), move || {
            assert_eq!(
                connect(others.into()).0.unwrap_err().raw_os_error(),
                Some(libc::EACCES)
            );
            TcpStream::connect(address).map(drop)
        });
        reached.unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn unix_sockets_are_for_those_who_have_one() {
        let folder = std::env::temp_dir().join(format!("rempart-confinement-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let connect = |reach| {
            let path = path.clone();
            confined(reach, move || UnixStream::connect(path).map(drop))
        };
        connect(Reach::UnixSockets).unwrap();
        for reach in [Reach::Nobody, Reach::Port(5432)] {
            assert_eq!(connect(reach).unwrap_err().raw_os_error(), Some(libc::EPERM));
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// As a server does that was confined once it listened, and as formats are tried in a child of it.
    #[test]
    fn what_listens_goes_on_and_programs_start() {
        let (listener, address) = elsewhere();
        listener.set_nonblocking(false).unwrap();
        let served = thread::Builder::new().spawn(move || {
            ports::restrict(Reach::Nobody).unwrap();
            calls::restrict(Reach::Nobody).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
            let _pair = UnixStream::pair().unwrap();
            std::process::Command::new("/bin/sh")
                .args(["-c", "exit 7"])
                .status()
                .unwrap()
                .code()
        });
        let mut stream = TcpStream::connect(address).unwrap();
        io::Write::write_all(&mut stream, b"served").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        assert_eq!(answer, "served");
        assert_eq!(served.unwrap().join().unwrap(), Some(7));
    }

    #[test]
    fn what_a_thread_starts_is_confined_too() {
        let (listener, address) = elsewhere();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}", address.port());
        let bash = move || std::process::Command::new("bash").args(["-c", &script]).output();
        if !bash().is_ok_and(|done| done.status.success()) {
            // It has no such paths, or is missing.
            return;
        }
        listener.accept().unwrap();
        let done = confined(Reach::Nobody, bash).unwrap();
        assert!(!done.status.success());
        assert!(String::from_utf8_lossy(&done.stderr).contains("not permitted"));
    }

    /// In a thread of a kernel that lacks a call, as the filter of a container can make it seem.
    fn without<T: Send + 'static>(call: c_long, action: impl FnOnce() -> T + Send + 'static) -> T {
        in_a_thread(move || {
            let refusal = seccompiler::SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
            let rules = [(call, Vec::new())].into();
            let allow = seccompiler::SeccompAction::Allow;
            let here = std::env::consts::ARCH.try_into().unwrap();
            let filter = seccompiler::SeccompFilter::new(rules, allow, refusal, here).unwrap();
            let program = seccompiler::BpfProgram::try_from(filter).unwrap();
            seccompiler::apply_filter(&program).unwrap();
            action()
        })
    }

    #[test]
    fn a_kernel_without_walls_is_refused() {
        let both = |reach| ports::restrict(reach).and_then(|_| calls::restrict(reach));
        for reach in [Reach::UnixSockets, Reach::Port(5432)] {
            let refused = without(libc::SYS_landlock_create_ruleset, move || both(reach))
                .unwrap_err()
                .to_string();
            assert!(refused.contains("Linux 6.7"), "{refused}");
        }
        let refused = without(libc::SYS_seccomp, move || both(Reach::Nobody))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("CONFIG_SECCOMP_FILTER"), "{refused}");
    }

    /// Where nobody may be reached, the filter needs no ports.
    #[test]
    fn seccomp_alone_shuts_every_way_out() {
        let (listener, address) = elsewhere();
        let tried = move || try_everything(Reach::Nobody, address);
        let (confined, attempts) = without(libc::SYS_landlock_create_ruleset, tried).unwrap();
        assert_eq!(confined.landlock_abi, None);
        assert!(attempts.len() > 20);
        for attempt in attempts {
            assert!(attempt.stopped_by.is_some(), "{attempt:?}");
        }
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
