//! The memory that bodies of requests take together. One project can't hold what others need of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A budget of bytes.
pub struct Bodies {
    budget: Arc<Semaphore>,
    /// What each project holds, where there are projects.
    held: Mutex<BTreeMap<String, usize>>,
}

/// What a body holds of it, until this is dropped.
pub struct Held {
    bodies: Arc<Bodies>,
    project: Option<String>,
    bytes: usize,
    permit: OwnedSemaphorePermit,
}

impl Bodies {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            budget: Arc::new(Semaphore::new(bytes_max.min(Semaphore::MAX_PERMITS))),
            held: Mutex::new(BTreeMap::new()),
        }
    }

    /// The part of a body that begins.
    pub fn begin(self: &Arc<Self>, project: Option<&str>) -> Held {
        Held {
            bodies: Arc::clone(self),
            project: project.map(str::to_owned),
            bytes: 0,
            permit: Arc::clone(&self.budget)
                .try_acquire_many_owned(0)
                .expect("the semaphore is never closed"),
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Takes so many bytes more, if there are as many for its project.
    pub fn take(&mut self, bytes: usize) -> bool {
        let mut held = self.bodies.held();
        if let Some(project) = &self.project {
            let own = held.get(project).copied().unwrap_or(0);
            let free = self.bodies.budget.available_permits();
            // Beside its only body a project holds as much as is left free: alone it gets half.
            if own > self.bytes && own + bytes > free.saturating_sub(bytes) {
                return false;
            }
        }
        let more = u32::try_from(bytes).ok();
        let Some(more) =
            more.and_then(|bytes| Arc::clone(&self.bodies.budget).try_acquire_many_owned(bytes).ok())
        else {
            return false;
        };
        self.permit.merge(more);
        self.bytes += bytes;
        if let Some(project) = &self.project {
            *held.entry(project.clone()).or_default() += bytes;
        }
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(project) = &self.project else { return };
        let mut held = self.bodies.held();
        if let Some(own) = held.get_mut(project) {
            *own -= self.bytes;
            if *own == 0 {
                held.remove(project);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_leaves_others_room() {
        let bodies = Arc::new(Bodies::new(100));
        let mut all: Vec<Held> = Vec::new();
        for _ in 0..20 {
            let mut body = bodies.begin(Some("a"));
            if body.take(10) {
                all.push(body);
            }
        }
        assert_eq!(all.len(), 5, "half of it");
        let mut other = bodies.begin(Some("b"));
        assert!(
            other.take(20) && other.take(20),
            "its only body may be as large as what is left"
        );
        assert!(!bodies.begin(Some("b")).take(10) && !bodies.begin(Some("a")).take(10));
        // Who asks nobody for a key has no projects.
        let mut open = bodies.begin(None);
        assert!(open.take(10) && !open.take(1));
        drop((all, other, open));
        assert!(bodies.held().is_empty());
        assert_eq!(bodies.budget.available_permits(), 100);
        assert!(bodies.begin(Some("a")).take(100));
    }
}
