//! The few places a rule does not bind, each with its reason. One that is no longer needed is itself a finding.

use super::{Finding, Tree};

struct Exception {
    rule: &'static str,
    /// A file, or a folder ending in `/`.
    path: &'static str,
    reason: &'static str,
}

/// Tables, generated code and what only `unsafe` can measure: a long function is split, not listed.
const EXCEPTIONS: &[Exception] = &[
    Exception {
        rule: "unsafe",
        path: "models/tests/hostile/allocator.rs",
        reason: "a test counts what a hostile file makes the loader allocate, and a global allocator is an unsafe trait",
    },
    Exception {
        rule: "unsafe",
        path: "server/confinement/src/trial.rs",
        reason: "a proof that calls are refused must make them, and for several of them there is no safe function",
    },
];

/// Drops what an exception covers, and reports every exception that covers nothing.
pub(super) fn apply(tree: &Tree, findings: Vec<Finding>) -> Vec<Finding> {
    apply_list(EXCEPTIONS, tree, findings)
}

fn apply_list(list: &[Exception], tree: &Tree, findings: Vec<Finding>) -> Vec<Finding> {
    let mut used = vec![false; list.len()];
    let mut kept = Vec::new();
    for finding in findings {
        match list.iter().position(|exception| exception.covers(&finding)) {
            Some(index) => used[index] = true,
            None => kept.push(finding),
        }
    }
    for (exception, _) in list
        .iter()
        .zip(used)
        .filter(|(exception, used)| !used && tree.has(exception.path))
    {
        kept.push(Finding {
            path: exception.path.to_owned(),
            line: 1,
            rule: "exception",
            message: format!(
                "no longer breaks the rule `{}` ({}): delete its line in scripts/xtask/src/tidy/exceptions.rs",
                exception.rule, exception.reason
            ),
        });
    }
    kept
}

impl Exception {
    fn covers(&self, finding: &Finding) -> bool {
        let covered = if self.path.ends_with('/') {
            finding.path.starts_with(self.path)
        } else {
            finding.path == self.path
        };
        covered && finding.rule == self.rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_its_rule_and_place_and_goes_stale() {
        let list = [Exception {
            rule: "size",
            path: "data/",
            reason: "a table",
        }];
        let finding = |path: &str, rule| Finding {
            path: path.to_owned(),
            line: 1,
            rule,
            message: String::new(),
        };
        let tree = Tree::of(&[("data/table.rs", "")]);
        let kept = apply_list(
            &list,
            &tree,
            vec![finding("data/table.rs", "size"), finding("data/table.rs", "text")],
        );
        assert_eq!(kept, vec![finding("data/table.rs", "text")]);
        let stale = apply_list(&list, &tree, Vec::new());
        assert_eq!(stale.len(), 1);
        assert_eq!(stale[0].rule, "exception");
    }
}
