//! Landlock: which TCP ports a thread, and all that it starts, may bind and connect to.

use landlock::{
    ABI, Access as _, AccessNet, CompatLevel, Compatible as _, LandlockStatus, NetPort, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
};

use crate::{Error, Reach};

/// Restricts the calling thread. Returns the generation of the interface; `None` where the kernel has no Landlock, or one that
/// knows no ports, and there is nobody to connect to: the filter of system calls then refuses that whatever the port is. (Debian
/// 12 has Linux 6.1.)
///
/// # Errors
/// Where it has none, and some connections must be told from others; or where what it has does not work.
pub(crate) fn restrict(reach: Reach) -> Result<Option<u32>, Error> {
    let missing = match rules(reach) {
        Ok(LandlockStatus::Available { effective_abi, .. }) => return Ok(Some(effective_abi as u32)),
        Ok(LandlockStatus::NotEnabled) => "it is not enabled".to_owned(),
        Ok(LandlockStatus::NotImplemented) => "it has none".to_owned(),
        // It was asked for what it must have.
        Err(error @ RulesetError::HandleAccesses(_)) => innermost(&error),
        Err(error) => return Err(Error::Landlock(innermost(&error))),
    };
    match reach {
        Reach::Nobody => Ok(None),
        Reach::UnixSockets | Reach::Port(_) => Err(Error::Landlock(missing)),
    }
}

fn innermost(error: &RulesetError) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn rules(reach: Reach) -> Result<LandlockStatus, RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessNet::from_all(ABI::V4))?
        // What newer kernels can also hold: UDP, and Unix sockets of processes outside that have no file.
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessNet::from_all(ABI::V10))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let rules = match reach {
        Reach::Port(port) => rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?,
        Reach::Nobody | Reach::UnixSockets => rules,
    };
    Ok(rules.restrict_self()?.landlock)
}
