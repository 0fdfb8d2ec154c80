//! All keys at one moment, in memory: whose a key is costs no query, so that a flood of wrong keys costs the database nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::content::Announced;
use crate::key::{Key, KeyHash, KeyId};
use crate::kind::KeyKind;
use crate::limit::{Limits, Subject};
use crate::role::{Role, Scope};

/// A key as it is kept.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    pub id: KeyId,
    pub hash: KeyHash,
    /// The project's identifier and name.
    pub project: String,
    pub project_name: String,
    pub role: Role,
    pub name: String,
    /// Unix seconds.
    pub created: i64,
    pub expires: Option<i64>,
    pub revoked: Option<i64>,
    /// The identifier of the person or service account whose it is, where it is anybody's.
    pub owner: Option<String>,
    /// What opens it.
    pub kind: KeyKind,
}

/// A person who has not left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insider {
    pub id: String,
    /// Identifiers and names of the projects that they are in.
    pub projects: Vec<(String, String)>,
    /// The mark of who they are at the login, once a token has told.
    pub subject: Option<String>,
}

/// People, as tokens of the login find them.
#[derive(Debug, Default)]
pub struct People {
    /// Those who have not left, by the mark of their address.
    here: HashMap<String, Insider>,
    /// The address of each subject of the login, by marks.
    subjects: HashMap<String, String>,
    /// The addresses of those who left.
    gone: HashSet<String>,
}

/// Whom a token is of, by its address and its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder<'a> {
    /// Somebody whose token this is.
    Known(&'a Insider),
    /// Somebody whose first token it is: it says who they are at the login.
    Unbound(&'a Insider),
    /// The address is this person's, and the subject another.
    Other(&'a Insider),
    Nobody,
}

impl People {
    /// Of those who have not left, with the mark of their address, and of the marks of those who have.
    pub fn new(here: Vec<(String, Insider)>, gone: HashSet<String>) -> Self {
        let subject = |(mark, person): &(String, Insider)| Some((person.subject.clone()?, mark.clone()));
        Self {
            subjects: here.iter().filter_map(subject).collect(),
            here: here.into_iter().collect(),
            gone,
        }
    }

    /// Who shows a token of this address and subject, by marks. The subject stays the same for ever, and an address does not: who
    /// has another by now is found, unless it is or was somebody else's.
    pub fn holder(&self, address: &str, subject: &str) -> Holder<'_> {
        let bound = self.subjects.get(subject);
        match (self.here.get(address), bound) {
            (Some(person), Some(own)) if own == address => Holder::Known(person),
            (Some(person), None) if person.subject.is_none() => Holder::Unbound(person),
            (Some(person), _) => Holder::Other(person),
            (None, Some(own)) if !self.gone.contains(address) => {
                self.here.get(own).map_or(Holder::Nobody, Holder::Known)
            }
            (None, _) => Holder::Nobody,
        }
    }
}

/// What identifiers of people begin with.
pub(crate) const PERSON_PREFIX: &str = "user_";

/// Whether the owner of a key is a person.
pub fn is_person(owner: &str) -> bool {
    owner.starts_with(PERSON_PREFIX)
}

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub key: KeyId,
    pub project: String,
    pub role: Role,
    /// The models it may use; `None`: all.
    pub models: Option<Arc<BTreeSet<String>>>,
    /// Its key, its project and the person whose it is, each with what it may use.
    pub limited: Arc<[(Subject, Limits)]>,
    /// The project's part of the machine, against those of others.
    pub weight: u32,
    /// When what was shown of it ends, Unix seconds.
    pub until: Option<i64>,
    /// What is recorded of the project, if anything ever was.
    pub recording: Option<Arc<Announced>>,
}

/// Why a key opens nothing. Strangers are told no more than that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    #[error("it is no key of a server like this")]
    Malformed,
    #[error("there is no such key")]
    Unknown,
    #[error("it was revoked")]
    Revoked,
    #[error("it has expired")]
    Expired,
}

/// A snapshot of keys and rights.
#[derive(Debug, Default)]
pub struct Directory {
    keys: HashMap<KeyId, KeyRecord>,
    /// By project.
    rights: HashMap<String, Arc<BTreeSet<String>>>,
    limits: BTreeMap<Subject, Limits>,
    /// By project.
    weights: HashMap<String, u32>,
    /// By project.
    recordings: HashMap<String, Arc<Announced>>,
    people: People,
    /// Those of tokens, by person and project.
    tokens: HashMap<(String, String), KeyId>,
    /// Those of certificates, by the hash of the public key in hexadecimal.
    certificates: HashMap<String, KeyId>,
}

impl Directory {
    /// Of the keys of projects that are not archived, and of pairs of a project and a model that it may use.
    pub fn new(keys: Vec<KeyRecord>, rights: Vec<(String, String)>) -> Self {
        let (mut tokens, mut certificates) = (HashMap::new(), HashMap::new());
        for key in &keys {
            match (key.kind, &key.owner) {
                (KeyKind::Token, Some(owner)) => {
                    tokens.insert((owner.clone(), key.project.clone()), key.id.clone());
                }
                // A certificate whose key was revoked may have had another since.
                (KeyKind::Certificate, _) if key.revoked.is_none() => {
                    certificates.insert(key.hash.to_hex(), key.id.clone());
                }
                (KeyKind::Certificate, _) => {
                    certificates
                        .entry(key.hash.to_hex())
                        .or_insert_with(|| key.id.clone());
                }
                (KeyKind::Token, None) | (KeyKind::Secret, _) => {}
            }
        }
        let keys = keys.into_iter().map(|key| (key.id.clone(), key)).collect();
        let mut by_project: HashMap<String, BTreeSet<String>> = HashMap::new();
        for (project, model) in rights {
            by_project.entry(project).or_default().insert(model);
        }
        Self {
            keys,
            rights: by_project
                .into_iter()
                .map(|(project, models)| (project, Arc::new(models)))
                .collect(),
            limits: BTreeMap::new(),
            weights: HashMap::new(),
            recordings: HashMap::new(),
            people: People::default(),
            tokens,
            certificates,
        }
    }

    /// With what projects and keys may use.
    #[must_use]
    pub fn with_limits(self, limits: BTreeMap<Subject, Limits>) -> Self {
        Self { limits, ..self }
    }

    /// With parts of the machine, by project. A project that is not among them has the weight 1.
    #[must_use]
    pub fn with_weights(self, weights: Vec<(String, u32)>) -> Self {
        let weights = weights.into_iter().collect();
        Self { weights, ..self }
    }

    /// With what is recorded of projects.
    #[must_use]
    pub fn with_recordings(self, recordings: BTreeMap<String, Announced>) -> Self {
        let of_one = |(project, announced)| (project, Arc::new(announced));
        let recordings = recordings.into_iter().map(of_one).collect();
        Self { recordings, ..self }
    }

    /// With people.
    #[must_use]
    pub fn with_people(self, people: People) -> Self {
        Self { people, ..self }
    }

    /// Those whom tokens are of.
    pub fn people(&self) -> &People {
        &self.people
    }

    /// The key that a person's tokens count as in a project, by identifiers, good or not.
    pub fn token_key(&self, person: &str, project: &str) -> Option<&KeyId> {
        self.tokens.get(&(person.to_owned(), project.to_owned()))
    }

    /// The key of a client's certificate, by its public key, good or not.
    pub fn certificate_key(&self, public_key: &KeyHash) -> Option<&KeyId> {
        self.certificates.get(&public_key.to_hex())
    }

    /// Whether a key is of the project of this identifier or name.
    pub fn is_of(&self, key: &KeyId, project: &str) -> bool {
        let record = self.keys.get(key);
        record.is_some_and(|record| record.project == project || record.project_name == project)
    }

    /// Whether a key that was shown is good, at a time in Unix seconds.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self, key: &KeyId, now_s: i64) -> Result<(), Denied> {
        let record = self.keys.get(key).ok_or(Denied::Unknown)?;
        if record.revoked.is_some() {
            return Err(Denied::Revoked);
        }
        if record.expires.is_some_and(|expires| expires <= now_s) {
            return Err(Denied::Expired);
        }
        Ok(())
    }

    /// Whether a key is good, and for this, at a time in Unix seconds.
    pub fn allows(&self, key: &KeyId, scope: Scope, now_s: i64) -> bool {
        let record = self.keys.get(key);
        self.check(key, now_s).is_ok() && record.is_some_and(|record| record.role.allows(scope))
    }

    /// Whose key this is, at a time in Unix seconds.
    ///
    /// # Errors
    /// Why it opens nothing.
    pub fn authenticate(&self, text: &str, now_s: i64) -> Result<Principal, Denied> {
        let key = Key::parse(text).ok_or(Denied::Malformed)?;
        let record = self.keys.get(&key.id).ok_or(Denied::Unknown)?;
        if record.kind != KeyKind::Secret || !key.is(&record.hash) {
            return Err(Denied::Unknown);
        }
        self.principal(&key.id, now_s)
    }

    /// Who holds a key that something else than its text has opened, at a time in Unix seconds.
    ///
    /// # Errors
    /// Why it opens nothing.
    pub fn principal(&self, key: &KeyId, now_s: i64) -> Result<Principal, Denied> {
        self.check(key, now_s)?;
        let record = self.keys.get(key).ok_or(Denied::Unknown)?;
        let person = record.owner.as_ref().filter(|owner| is_person(owner));
        let subjects = [
            Some(Subject::Key(key.0.clone())),
            Some(Subject::Project(record.project.clone())),
            person.map(|id| Subject::Person(id.clone())),
        ];
        let limited = subjects.into_iter().flatten().map(|subject| {
            let limits = self.limits.get(&subject).copied().unwrap_or_default();
            (subject, limits)
        });
        Ok(Principal {
            key: key.clone(),
            limited: limited.collect(),
            weight: self.weights.get(&record.project).copied().unwrap_or(1),
            project: record.project.clone(),
            role: record.role,
            models: self.rights.get(&record.project).cloned(),
            until: record.expires,
            recording: self.recordings.get(&record.project).cloned(),
        })
    }
}

impl Principal {
    /// The same whose token or certificate ends at a time, Unix seconds.
    #[must_use]
    pub fn ending(self, at: i64) -> Self {
        let until = self.until.map_or(at, |until| until.min(at));
        Self {
            until: Some(until),
            ..self
        }
    }

    /// Whether it may use a model that goes by any of these names.
    pub fn may_use<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> bool {
        let Some(models) = &self.models else {
            return true;
        };
        names.any(|name| models.contains(name))
    }

    /// What keeps a project's cached prompts apart from those of others: nobody finds out by the clock what another has asked.
    pub fn cache_salt(&self) -> u64 {
        let digest = Sha256::digest(self.project.as_bytes());
        u64::from_le_bytes(*digest.first_chunk().expect("a digest has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::NewKey;

    fn record(key: &NewKey) -> KeyRecord {
        KeyRecord {
            id: key.id.clone(),
            hash: key.hash,
            project: "proj_a".to_owned(),
            project_name: "a".to_owned(),
            role: Role::Member,
            name: "laptop".to_owned(),
            created: 10,
            expires: None,
            revoked: None,
            owner: None,
            kind: KeyKind::Secret,
        }
    }

    #[test]
    fn only_a_living_key_opens() {
        let (key, other, old, ended) = (
            NewKey::make().unwrap(),
            NewKey::make().unwrap(),
            NewKey::make().unwrap(),
            NewKey::make().unwrap(),
        );
        let expired = KeyRecord {
            expires: Some(100),
            ..record(&old)
        };
        let revoked = KeyRecord {
            revoked: Some(50),
            ..record(&ended)
        };
        let stolen_id = KeyRecord {
            id: other.id.clone(),
            ..record(&key)
        };
        let rights = vec![("proj_a".to_owned(), "one".to_owned())];
        let directory = Directory::new(vec![record(&key), expired, revoked, stolen_id], rights);
        let at = |key: &NewKey, now| directory.authenticate(key.reveal(), now);
        let principal = at(&key, 100).unwrap();
        assert_eq!(
            (principal.role, principal.project.as_str()),
            (Role::Member, "proj_a")
        );
        assert!(principal.may_use(["x", "one"].into_iter()) && !principal.may_use(["x"].into_iter()));
        assert_eq!(at(&old, 99).map(|principal| principal.key), Ok(old.id.clone()));
        assert_eq!(at(&old, 100), Err(Denied::Expired));
        assert_eq!(at(&ended, 0), Err(Denied::Revoked));
        let allows = |key: &NewKey, scope| directory.allows(&key.id, scope, 99);
        assert!(allows(&key, Scope::Use) && allows(&old, Scope::Use) && !allows(&ended, Scope::Use));
        assert!(!allows(&key, Scope::Audit) && !directory.allows(&old.id, Scope::Use, 100));
        assert_eq!(
            at(&other, 100),
            Err(Denied::Unknown),
            "an identifier is not enough"
        );
        assert_eq!(directory.authenticate("sk-x", 100), Err(Denied::Malformed));
        assert_eq!(at(&NewKey::make().unwrap(), 100), Err(Denied::Unknown));
    }

    #[test]
    fn a_subject_is_one_person_and_an_address_may_change() {
        let person = |id: &str, subject: Option<&str>| Insider {
            id: id.to_owned(),
            projects: Vec::new(),
            subject: subject.map(str::to_owned),
        };
        let (anna, bob) = (person("anna", Some("s1")), person("bob", None));
        let people = People::new(
            vec![
                ("anna@".to_owned(), anna.clone()),
                ("bob@".to_owned(), bob.clone()),
            ],
            HashSet::from(["eve@".to_owned()]),
        );
        assert_eq!(people.holder("anna@", "s1"), Holder::Known(&anna));
        assert_eq!(people.holder("bob@", "s2"), Holder::Unbound(&bob));
        assert_eq!(people.holder("anna.new@", "s1"), Holder::Known(&anna));
        // Her address was given to another, she was given another's, and one that was.
        assert_eq!(people.holder("anna@", "s2"), Holder::Other(&anna));
        assert_eq!(people.holder("bob@", "s1"), Holder::Other(&bob));
        assert_eq!(people.holder("eve@", "s1"), Holder::Nobody);
        assert_eq!(people.holder("x@", "s2"), Holder::Nobody);
        // Neither is found by the other's mark.
        assert_eq!(people.holder("s1", "anna@"), Holder::Nobody);
    }

    #[test]
    fn what_has_no_text_is_opened_by_no_text() {
        let (text, of_certificate) = (NewKey::make().unwrap(), NewKey::make().unwrap());
        let token = KeyRecord {
            kind: KeyKind::Token,
            owner: Some("user_a".to_owned()),
            ..record(&text)
        };
        let revoked = KeyRecord {
            id: KeyId("revoked1".to_owned()),
            kind: KeyKind::Certificate,
            revoked: Some(1),
            ..record(&of_certificate)
        };
        let certificate = KeyRecord {
            kind: KeyKind::Certificate,
            ..record(&of_certificate)
        };
        // Even with the hash of a secret that somebody knows.
        for order in [[certificate.clone(), revoked.clone()], [revoked, certificate]] {
            let directory = Directory::new(
                [order.as_slice(), std::slice::from_ref(&token)].concat(),
                Vec::new(),
            );
            for key in [&text, &of_certificate] {
                assert_eq!(directory.authenticate(key.reveal(), 0), Err(Denied::Unknown));
            }
            assert_eq!(directory.token_key("user_a", "proj_a"), Some(&text.id));
            assert_eq!(directory.token_key("user_a", "proj_b"), None);
            let living = directory.certificate_key(&of_certificate.hash);
            assert_eq!(
                living,
                Some(&of_certificate.id),
                "one that was revoked hides none"
            );
            assert_eq!(directory.certificate_key(&text.hash), None);
            assert!(directory.is_of(&text.id, "a") && directory.is_of(&text.id, "proj_a"));
            assert!(!directory.is_of(&text.id, "b"));
        }
    }
}
