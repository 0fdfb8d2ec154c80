//! Rows that are read by the thousand.

use serde::de::DeserializeOwned;
use sqlx::{Any, AnyConnection, Row as _};

use super::super::{Database, Error};

/// Reads rows of some columns, of what `rest` says with these numbers in it, in any order. They come as one text: a driver hands rows
/// over one by one, and takes several times as long for that as the database for finding them.
///
/// # Errors
/// What the database says, and that it holds what this program has not written.
pub(super) async fn page<T: DeserializeOwned>(
    connection: &mut AnyConnection,
    database: &Database,
    (columns, rest): (&str, &str),
    numbers: &[i64],
) -> Result<Vec<T>, Error> {
    let query = match database {
        Database::File(_) => {
            format!(
                "SELECT json_group_array(json_array({columns})) FROM (SELECT {columns} FROM {rest}) AS page"
            )
        }
        Database::Server(_) => format!(
            "SELECT COALESCE(CAST(json_agg(json_build_array({columns})) AS TEXT), '[]') FROM (SELECT {columns} FROM {rest}) AS page"
        ),
    };
    let mut asked = sqlx::query::<Any>(sqlx::AssertSqlSafe(query));
    for number in numbers {
        asked = asked.bind(*number);
    }
    let row = asked.fetch_one(connection).await?;
    let text: String = row.try_get(0)?;
    serde_json::from_str(&text).map_err(|_| Error::Unsound("a value is not of its column's type".to_owned()))
}
