//! How the tables came to be, change by change. They are listed here and not by the driver's macro, for which the drivers would be
//! compiled twice.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// What each is about, and its words. A change that has been released stays as it is: databases know it by its digest.
const CHANGES: &[(&str, &str)] = &[
    ("identity", include_str!("../../migrations/0001_identity.sql")),
    ("usage", include_str!("../../migrations/0002_usage.sql")),
    ("limits", include_str!("../../migrations/0003_limits.sql")),
    ("people", include_str!("../../migrations/0004_people.sql")),
    ("retention", include_str!("../../migrations/0005_retention.sql")),
    ("tokens", include_str!("../../migrations/0006_tokens.sql")),
    ("subjects", include_str!("../../migrations/0007_subjects.sql")),
    ("leases", include_str!("../../migrations/0008_leases.sql")),
    ("content", include_str!("../../migrations/0009_content.sql")),
    ("unchained", include_str!("../../migrations/0010_unchained.sql")),
];

/// How many there are, which is the number of the last.
pub(super) fn known() -> usize {
    CHANGES.len()
}

/// Makes the changes that a database has not seen.
pub(super) fn migrator() -> Migrator {
    let change = |(number, &(about, words)): (i64, &(&'static str, &'static str))| {
        Migration::new(
            number,
            about.into(),
            MigrationType::Simple,
            words.into_sql_str(),
            false,
        )
    };
    Migrator::with_migrations((1..).zip(CHANGES).map(change).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_listed_by_its_number() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let listed: Vec<String> = (1..)
            .zip(CHANGES)
            .map(|(number, (about, _))| format!("{number:04}_{about}.sql"))
            .collect();
        assert_eq!(files, listed);
    }
}
