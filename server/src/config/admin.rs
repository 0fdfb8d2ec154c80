//! The administrative interface, and when models are unloaded.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;

use super::{AllowedHosts, Error};

/// Options of what an operator does at run time.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Administration")]
pub struct AdminArgs {
    /// Address of the interface that loads and unloads models, apart from the other one [default: there is none]
    #[arg(long, env = "REMPART_ADMIN_BIND")]
    pub admin_bind: Option<SocketAddr>,
    /// Seconds that running requests get to finish when their model is unloaded
    #[arg(long, env = "REMPART_UNLOAD_TIMEOUT_S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub unload_timeout_s: u64,
    /// Requests that may wait for one model while it is loaded; further ones get a 503
    #[arg(long, env = "REMPART_LOAD_WAITING_MAX", default_value = "256")]
    pub load_waiting_max: NonZeroUsize,
    /// Seconds without a request after which a model is unloaded, until the next one asks for it; 0: never
    #[arg(long, env = "REMPART_IDLE_UNLOAD_S", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=2_592_000))]
    pub idle_unload_s: u64,
}

#[derive(Debug, Clone)]
pub struct AdminSettings {
    pub bind: Option<SocketAddr>,
    /// What the `Host` header may name there; `None`: anything.
    pub hosts: Option<AllowedHosts>,
    pub unload_timeout: Duration,
    pub idle_unload: Option<Duration>,
    pub load_waiting_max: usize,
}

impl AdminArgs {
    /// `bind` is that of the other interface.
    pub(super) fn check(self, bind: SocketAddr) -> Result<AdminSettings, Error> {
        let mut hosts = None;
        if let Some(own) = self.admin_bind {
            if !own.ip().is_loopback() {
                return Err(Error::RemoteAdminBind { bind: own });
            }
            if own == bind && own.port() != 0 {
                return Err(Error::OneBind { bind });
            }
            hosts = AllowedHosts::new(own, Vec::new())?;
        }
        Ok(AdminSettings {
            bind: self.admin_bind,
            hosts,
            unload_timeout: Duration::from_secs(self.unload_timeout_s),
            load_waiting_max: self.load_waiting_max.get(),
            idle_unload: (self.idle_unload_s > 0).then(|| Duration::from_secs(self.idle_unload_s)),
        })
    }
}
