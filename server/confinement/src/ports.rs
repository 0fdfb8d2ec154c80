//! Landlock: which TCP ports a thread, and all that it starts, may bind and connect to.

use landlock::{
    ABI, Access as _, AccessNet, CompatLevel, Compatible as _, LandlockStatus, NetPort, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
};

use crate::{Error, Reach};

/// Restricts the calling thread. Returns the generation of the interface.
///
/// # Errors
/// Where the kernel has no Landlock, or one that knows no ports.
pub(crate) fn restrict(reach: Reach) -> Result<u32, Error> {
    let failed = |error: RulesetError| {
        let mut said = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            said = error.to_string();
            source = error.source();
        }
        Error::Landlock(said)
    };
    let status = rules(reach).map_err(failed)?;
    match status {
        LandlockStatus::Available { effective_abi, .. } => Ok(effective_abi as u32),
        LandlockStatus::NotEnabled => Err(Error::Landlock("it is not enabled".to_owned())),
        LandlockStatus::NotImplemented => Err(Error::Landlock("it has none".to_owned())),
    }
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
