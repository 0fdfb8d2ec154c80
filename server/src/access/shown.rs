//! From what a request shows to who makes it: a key, a token of a login, or a client's certificate.

use std::sync::Arc;

use rempart_governance::{Denied, Directory, Error, Holder, Insider, Key, KeyId, Principal, now_s};

use super::{Keys, LOOK_MAX, Refusal};
use crate::certificate::ClientCertificate;
use crate::oidc::{Oidc, Whose};

/// What a request shows of who makes it, as it is in its head.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown<'a> {
    /// Or a token.
    pub key: Option<&'a str>,
    /// The project that it means, by identifier or name.
    pub project: Option<&'a str>,
    /// Counts where there is no key.
    pub certificate: Option<&'a ClientCertificate>,
}

impl Keys {
    /// Who makes a request that shows this.
    pub(super) async fn principal(&self, shown: &Shown<'_>) -> Result<Principal, Refusal> {
        let directory = self.directory().ok_or(Refusal::Unknowable)?;
        let principal = match (shown.key, shown.certificate, &self.oidc) {
            (Some(token), _, Some(oidc)) if Oidc::is_token(token) => {
                return self.of_token(directory, oidc, token, shown.project).await;
            }
            (Some(text), ..) => directory
                .authenticate(text, now_s())
                .map_err(|denied| Refusal::Key(denied, own_id(text, denied)))?,
            (None, Some(certificate), _) => of_certificate(&directory, certificate)?,
            (None, None, _) => return Err(Refusal::NoKey),
        };
        match shown.project {
            Some(project) if !directory.is_of(&principal.key, project) => {
                Err(Refusal::Project(principal.key.0))
            }
            _ => Ok(principal),
        }
    }

    /// Who shows a token. Until the login's signature is known to be good, this costs the database nothing.
    async fn of_token(
        &self,
        directory: Arc<Directory>,
        oidc: &Oidc,
        token: &str,
        project: Option<&str>,
    ) -> Result<Principal, Refusal> {
        let (whose, until) = oidc.whose(token).map_err(Refusal::Token)?;
        let directory = self.bound(directory, oidc, &whose).await?;
        let person = match directory.people().holder(&whose.address, &whose.subject) {
            Holder::Known(person) => person,
            Holder::Other(person) => return Err(Refusal::OtherSubject(person.id.clone())),
            // They have left since that was last looked at, or were bound to nobody any more.
            Holder::Unbound(_) | Holder::Nobody => return Err(Refusal::Stranger),
        };
        let project = one_project(person, project)?;
        let opened = |directory: &Directory, key: &KeyId| {
            let refused = |denied| Refusal::Key(denied, Some(key.clone()));
            let principal = directory.principal(key, now_s()).map_err(refused)?;
            Ok(principal.ending(until))
        };
        if let Some(key) = directory.token_key(&person.id, project) {
            return opened(&directory, key);
        }
        let first = Box::pin(self.first_use(&person.id, project));
        let directory = self.written(first).await?;
        let key = directory.token_key(&person.id, project);
        opened(&directory, key.ok_or(Refusal::Stranger)?)
    }

    /// Who there is, once the person of a token is who that says: their first one binds them.
    async fn bound(
        &self,
        directory: Arc<Directory>,
        oidc: &Oidc,
        whose: &Whose,
    ) -> Result<Arc<Directory>, Refusal> {
        let Holder::Unbound(person) = directory.people().holder(&whose.address, &whose.subject) else {
            return Ok(directory);
        };
        let bind = Box::pin(async {
            let _turn = self.first_uses.lock().await;
            match oidc.bind(&person.id, whose).await {
                // Another token was faster: whose they are now is seen next.
                Err(Error::Refused(_)) | Ok(()) => self.refresh().await,
                Err(error) => Err(error),
            }
        });
        self.written(bind).await
    }

    /// Who there is after something was written of who shows a token.
    async fn written(
        &self,
        write: impl Future<Output = Result<(), Error>>,
    ) -> Result<Arc<Directory>, Refusal> {
        let written = tokio::time::timeout(LOOK_MAX, write).await;
        match written.unwrap_or(Err(Error::Silent)) {
            Ok(()) => self.directory().ok_or(Refusal::Unknowable),
            // They have left since that was last looked at.
            Err(Error::Missing(_) | Error::Refused(_)) => Err(Refusal::Stranger),
            Err(error) => {
                tracing::error!(%error, "what somebody's first token says can't be recorded");
                Err(Refusal::Unknowable)
            }
        }
    }

    /// Makes the key that a person's tokens count as in a project.
    async fn first_use(&self, person: &str, project: &str) -> Result<(), Error> {
        let _turn = self.first_uses.lock().await;
        let known = self.directory();
        if known.is_some_and(|known| known.token_key(person, project).is_some()) {
            return Ok(());
        }
        self.store.ensure_token_key("server", person, project).await?;
        self.refresh().await
    }
}

/// Who shows a certificate. One that no key is of says only that they may connect.
fn of_certificate(directory: &Directory, certificate: &ClientCertificate) -> Result<Principal, Refusal> {
    let now = now_s();
    // A connection may last longer.
    if certificate.ends < now {
        return Err(Refusal::NoKey);
    }
    let key = directory.certificate_key(&certificate.key);
    let key = key.ok_or(Refusal::NoKey)?;
    let refused = |denied| Refusal::Key(denied, Some(key.clone()));
    let principal = directory.principal(key, now).map_err(refused)?;
    Ok(principal.ending(certificate.ends))
}

/// The identifier of the project that a person means.
fn one_project<'a>(person: &'a Insider, wanted: Option<&str>) -> Result<&'a str, Refusal> {
    match (wanted, person.projects.as_slice()) {
        (Some(wanted), all) => all
            .iter()
            .find(|(id, name)| id == wanted || name == wanted)
            .map(|(id, _)| id.as_str())
            .ok_or_else(|| Refusal::Project(person.id.clone())),
        (None, []) => Err(Refusal::Outside(person.id.clone())),
        (None, [(id, _)]) => Ok(id),
        (None, several) => Err(Refusal::Projects {
            person: person.id.clone(),
            projects: several.iter().map(|(id, _)| id.clone()).collect(),
        }),
    }
}

/// The identifier of a key that was good once. Of others it is whatever a stranger wrote.
fn own_id(key: &str, denied: Denied) -> Option<KeyId> {
    match denied {
        Denied::Revoked | Denied::Expired => Key::parse(key).map(|key| key.id),
        Denied::Malformed | Denied::Unknown => None,
    }
}
