//! A seccomp filter: which system calls a thread, and all that it starts, may make. It names what leads out rather than all that
//! a server and its libraries need, which no list would keep up with; families of sockets are named the other way round.

use std::collections::BTreeMap;

use libc::{
    AF_INET, AF_INET6, AF_UNIX, EPERM, IPPROTO_TCP, MSG_FASTOPEN, SECCOMP_RET_ERRNO, SYS_bind, SYS_connect,
    SYS_listen, SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_socket, SYS_socketpair,
};
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, sock_filter,
};

use crate::{Error, Reach};

/// What a call of this filter is refused with: Landlock says `EACCES`, so that the two can be told apart.
const REFUSAL: u32 = EPERM.cast_unsigned();
/// In the number of a call: it is one of x32's, a second set of all calls that 64-bit processes can make on some kernels.
pub(crate) const X32: u32 = 0x4000_0000;

/// Restricts the calling thread, which then can't gain privileges by starting a program either.
///
/// # Errors
/// Where the kernel has no seccomp, or there is no filter for this processor.
pub(crate) fn restrict(reach: Reach) -> Result<(), Error> {
    apply_filter(&program(reach)?).map_err(|error| Error::Seccomp(error.to_string()))
}

fn program(reach: Reach) -> Result<BpfProgram, Error> {
    let unknown = |_| Error::Architecture(std::env::consts::ARCH);
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(unknown)?;
    let invalid = |error: BackendError| Error::Seccomp(error.to_string());
    let refused = SeccompAction::Errno(REFUSAL);
    let rules = refusals(reach).map_err(invalid)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture).map_err(invalid)?;
    let mut program = native_calls_only()?;
    program.extend(BpfProgram::try_from(filter).map_err(invalid)?);
    Ok(program)
}

/// Calls of other sets have other numbers, and rules would not know them. The filter's own guard would end the process, and
/// knows nothing of x32.
fn native_calls_only() -> Result<BpfProgram, Error> {
    // linux/audit.h
    let native: u32 = match std::env::consts::ARCH {
        "x86_64" => 0xC000_003E,
        "aarch64" => 0xC000_00B7,
        other => return Err(Error::Architecture(other)),
    };
    // linux/bpf_common.h: load a word, skip instructions if it is equal, or at least, and return. Words of `seccomp_data`: the
    // number, then the set.
    let load = |offset| instruction(0x20, (0, 0), offset);
    let refuse = || instruction(0x06, (0, 0), SECCOMP_RET_ERRNO | REFUSAL);
    Ok(vec![
        load(4),
        instruction(0x15, (1, 0), native),
        refuse(),
        load(0),
        instruction(0x35, (0, 1), X32),
        refuse(),
    ])
}

fn instruction(code: u16, (jt, jf): (u8, u8), k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Calls that no server needs, and that lead past the others.
const WAYS_AROUND: [i64; 18] = [
    // A ring makes calls that no filter sees.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Into processes that are not confined.
    libc::SYS_ptrace,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // For a key that it lacks, such as the address of a name, the kernel starts a program outside.
    libc::SYS_request_key,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    // The kernel itself connects to the machine whose file system is mounted.
    libc::SYS_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Into the kernel.
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
];

type Rules = Vec<SeccompRule>;

/// The calls that are refused; always, or where one of the rules is met.
fn refusals(reach: Reach) -> Result<BTreeMap<i64, Rules>, BackendError> {
    let mut refused = BTreeMap::new();
    // What listens does already; and a socket that was not bound would be bound by `listen`, past Landlock.
    for call in [SYS_bind, SYS_listen] {
        refused.insert(call, Vec::new());
    }
    for call in WAYS_AROUND {
        refused.insert(call, Vec::new());
    }
    // To send with this flag connects, and not all kernels ask Landlock then.
    for (call, flags) in [(SYS_sendto, 3), (SYS_sendmsg, 2), (SYS_sendmmsg, 3)] {
        refused.insert(call, vec![rule([has(flags, MSG_FASTOPEN)?])?]);
    }
    refused.insert(SYS_socketpair, vec![rule([is_not(0, AF_UNIX)?])?]);
    match reach {
        Reach::Nobody => {
            refused.insert(SYS_socket, Vec::new());
            refused.insert(SYS_connect, Vec::new());
        }
        Reach::UnixSockets => {
            refused.insert(SYS_socket, vec![rule([is_not(0, AF_UNIX)?])?]);
        }
        // The port is Landlock's to see: the address of `connect` is behind a pointer.
        Reach::Port(_) => {
            refused.insert(SYS_socket, all_but_tcp()?);
        }
    }
    Ok(refused)
}

/// Refuses sockets but those of TCP itself: MPTCP, SCTP and others are streams that Landlock does not hold.
fn all_but_tcp() -> Result<Rules, BackendError> {
    // SOCK_STREAM is 1, and flags stand above the four bits of a kind.
    let no_kind_of = |bit| rule([has(1, bit)?]);
    Ok(vec![
        rule([is_not(0, AF_INET)?, is_not(0, AF_INET6)?])?,
        rule([condition(1, MaskedEq(1), 0)?])?,
        no_kind_of(2)?,
        no_kind_of(4)?,
        no_kind_of(8)?,
        rule([is_not(2, 0)?, is_not(2, IPPROTO_TCP)?])?,
    ])
}

/// Met where all conditions are.
fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into())
}

fn is_not(argument: u8, value: i32) -> Result<SeccompCondition, BackendError> {
    condition(argument, Ne, value)
}

fn has(argument: u8, flag: i32) -> Result<SeccompCondition, BackendError> {
    condition(argument, MaskedEq(u64::from(flag.cast_unsigned())), flag)
}

/// The arguments in question are 32 bits wide for the kernel, whatever a register holds above them.
fn condition(argument: u8, how: SeccompCmpOp, value: i32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Dword, how, u64::from(value.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_stays_short() {
        for reach in [Reach::Nobody, Reach::UnixSockets, Reach::Port(5432)] {
            let program = program(reach).unwrap();
            // Each call of the process runs through it.
            assert!(program.len() < 200, "{reach}: {}", program.len());
        }
    }
}
