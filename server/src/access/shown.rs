//! From what a request shows to who makes it: a key, a token of a login, or a client's certificate.

use std::sync::Arc;

use rempart_governance::{Denied, Directory, Error, Insider, Key, KeyId, Principal, now_s};

use super::{Keys, LOOK_MAX, Refusal};
use crate::certificate::ClientCertificate;
use crate::oidc::Oidc;

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
        let (mark, until) = oidc.mark(token).map_err(Refusal::Token)?;
        let person = directory.person(&mark).ok_or(Refusal::Stranger)?;
        let project = one_project(person, project)?;
        let opened = |directory: &Directory, key: &KeyId| {
            let refused = |denied| Refusal::Key(denied, Some(key.clone()));
            let principal = directory.principal(key, now_s()).map_err(refused)?;
            Ok(principal.ending(until))
        };
        if let Some(key) = directory.token_key(&person.id, project) {
            return opened(&directory, key);
        }
        let first = tokio::time::timeout(LOOK_MAX, Box::pin(self.first_use(&person.id, project)));
        match first.await.unwrap_or(Err(Error::Silent)) {
            Ok(()) => {}
            // They have left since that was last looked at.
            Err(Error::Missing(_) | Error::Refused(_)) => return Err(Refusal::Stranger),
            Err(error) => {
                tracing::error!(%error, "the key of somebody's tokens can't be made");
                return Err(Refusal::Unknowable);
            }
        }
        let directory = self.directory().ok_or(Refusal::Unknowable)?;
        let key = directory.token_key(&person.id, project);
        opened(&directory, key.ok_or(Refusal::Stranger)?)
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
