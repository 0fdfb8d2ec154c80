//! What holds for all rows there are.

use sqlx::{Any, Row as _, Transaction};

use super::{Error, Store, audit};

const CURRENCY: &str = "currency";

impl Store {
    /// The currency of costs; `None` where no prices were ever set.
    ///
    /// # Errors
    /// What the database says.
    pub async fn currency(&self) -> Result<Option<String>, Error> {
        self.setting(CURRENCY).await
    }

    /// What was settled under a name.
    pub(super) async fn setting(&self, name: &str) -> Result<Option<String>, Error> {
        let row = sqlx::query("SELECT value FROM setting WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// Settles the currency of costs, or checks that it is the one that was settled.
    ///
    /// # Errors
    /// Where costs are recorded in another one, and what the database says.
    pub async fn settle_currency(&self, actor: &str, currency: &str) -> Result<(), Error> {
        let mut change = self.begin().await?;
        if let Some(settled) = setting(&mut change, CURRENCY).await? {
            if settled == currency {
                return Ok(());
            }
            let message = format!("costs are recorded in {settled}: they can't be told in {currency}, too");
            return Err(Error::Refused(message));
        }
        insert_setting(&mut change, CURRENCY, currency).await?;
        let detail = serde_json::json!({"value": currency}).to_string();
        audit::append(&mut change, actor, "organization.updated", CURRENCY, detail).await?;
        Ok(change.commit().await?)
    }
}

/// What was settled under a name.
pub(super) async fn setting(
    change: &mut Transaction<'static, Any>,
    name: &str,
) -> Result<Option<String>, Error> {
    let row = sqlx::query("SELECT value FROM setting WHERE name = $1")
        .bind(name)
        .fetch_optional(&mut **change)
        .await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// Settles something, or settles it anew.
pub(super) async fn insert_setting(
    change: &mut Transaction<'static, Any>,
    name: &str,
    value: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(name)
    .bind(value)
    .execute(&mut **change)
    .await?;
    Ok(())
}
