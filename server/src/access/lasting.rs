//! How long what was shown lasts: an answer that is still being made ends with it.

use std::sync::Arc;

use rempart_governance::{Directory, Principal, Scope, now_s};

use super::{Access, Caller, LOOK};

impl Access {
    /// Waits until a caller's key, token, certificate, person or project has ended, or uses models no more; for ever where there are
    /// no keys. The future owns what it needs, and looks into memory alone: once a second, as time passes, and when something changes.
    pub fn ended(&self, caller: &Caller) -> impl Future<Output = ()> + Send + use<> {
        let watched = match (self, caller) {
            (Self::Keys(keys), Caller::Holder(principal)) => {
                Some((keys.changes.subscribe(), Arc::clone(principal)))
            }
            _ => None,
        };
        async move {
            let Some((mut directory, principal)) = watched else {
                return std::future::pending().await;
            };
            while lasts(&directory.borrow_and_update(), &principal) {
                // That nothing changes any more is no reason to stop looking at the clock.
                let _ = tokio::time::timeout(LOOK, async {
                    if directory.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                })
                .await;
            }
        }
    }
}

fn lasts(directory: &Directory, principal: &Principal) -> bool {
    let now = now_s();
    principal.until.is_none_or(|until| until > now) && directory.allows(&principal.key, Scope::Use, now)
}
