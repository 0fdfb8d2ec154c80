//! What holds for all rows there are.

use sqlx::Row as _;

use super::{Error, Store, audit};

const CURRENCY: &str = "currency";

impl Store {
    /// The currency of costs; `None` where no prices were ever set.
    ///
    /// # Errors
    /// What the database says.
    pub async fn currency(&self) -> Result<Option<String>, Error> {
        let row = sqlx::query("SELECT value FROM setting WHERE name = $1")
            .bind(CURRENCY)
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
        let row = sqlx::query("SELECT value FROM setting WHERE name = $1")
            .bind(CURRENCY)
            .fetch_optional(&mut *change)
            .await?;
        if let Some(row) = row {
            let settled: String = row.try_get(0)?;
            if settled == currency {
                return Ok(());
            }
            let message = format!("costs are recorded in {settled}: they can't be told in {currency}, too");
            return Err(Error::Refused(message));
        }
        sqlx::query("INSERT INTO setting (name, value) VALUES ($1, $2)")
            .bind(CURRENCY)
            .bind(currency)
            .execute(&mut *change)
            .await?;
        let detail = serde_json::json!({"value": currency}).to_string();
        audit::append(&mut change, actor, "setting.changed", CURRENCY, detail).await?;
        Ok(change.commit().await?)
    }
}
