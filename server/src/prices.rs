//! What tokens cost, as the company has set it.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use rempart_governance::UsageEvent;

/// The most that a million tokens may cost.
const PRICE_MAX: i64 = 1_000_000;
/// Thousandths: a price has up to three decimals, so that one token costs a whole number of billionths.
const DECIMALS: u32 = 3;

/// Prices by model. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Prices(Arc<BTreeMap<String, Price>>);

/// Billionths of the currency for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    pub input: i64,
    pub cached: i64,
    pub output: i64,
}

/// A model's name and what a million of its tokens cost: `MODEL=INPUT,OUTPUT` or `MODEL=INPUT,OUTPUT,CACHED`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPrice {
    pub model: String,
    pub price: Price,
}

impl Prices {
    /// # Errors
    /// The name of a model that has two prices.
    pub fn new(named: Vec<NamedPrice>) -> Result<Self, String> {
        let mut prices = BTreeMap::new();
        for NamedPrice { model, price } in named {
            if prices.insert(model.clone(), price).is_some() {
                return Err(model);
            }
        }
        Ok(Self(Arc::new(prices)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The models that have a price.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// What a request costs, in billionths; nothing where its model has no price.
    pub fn cost_nano(&self, row: &UsageEvent) -> i64 {
        let Some(price) = self.0.get(&row.model) else {
            return 0;
        };
        let parts = [
            (row.input - row.cached, price.input),
            (row.cached, price.cached),
            (row.output, price.output),
        ];
        let costs = parts.map(|(tokens, price)| tokens.saturating_mul(price));
        costs.into_iter().fold(0, i64::saturating_add)
    }
}

impl FromStr for NamedPrice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = "a price is MODEL=INPUT,OUTPUT or MODEL=INPUT,OUTPUT,CACHED, for a million tokens each";
        // A model's name may hold the sign, a price not.
        let (model, prices) = text.rsplit_once('=').ok_or(shape)?;
        let prices: Vec<i64> = prices.split(',').map(thousandths).collect::<Result<_, _>>()?;
        let price = match prices[..] {
            [input, output] => Price {
                input,
                cached: input,
                output,
            },
            [input, output, cached] => Price {
                input,
                cached,
                output,
            },
            _ => return Err(shape.to_owned()),
        };
        if model.is_empty() {
            return Err(shape.to_owned());
        }
        Ok(Self {
            model: model.to_owned(),
            price,
        })
    }
}

/// A decimal number in thousandths, which for a million tokens are billionths for one.
fn thousandths(text: &str) -> Result<i64, String> {
    let wrong = || format!("a price is a number from 0 to {PRICE_MAX} with up to {DECIMALS} decimals");
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > DECIMALS as usize {
        return Err(wrong());
    }
    let whole: i64 = whole.parse().map_err(|_| wrong())?;
    if whole > PRICE_MAX {
        return Err(wrong());
    }
    let thousandths: i64 = format!("{decimals:0<3}").parse().map_err(|_| wrong())?;
    Ok(whole * 1_000 + thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(text: &str) -> Result<(String, [i64; 3]), String> {
        let named: NamedPrice = text.parse()?;
        let Price {
            input,
            cached,
            output,
        } = named.price;
        Ok((named.model, [input, cached, output]))
    }

    #[test]
    fn prices_are_exact() {
        assert_eq!(price("m=0.15,0.6"), Ok(("m".to_owned(), [150, 150, 600])));
        assert_eq!(price("a=b=1,2,0.001"), Ok(("a=b".to_owned(), [1_000, 1, 2_000])));
        for wrong in [
            "m",
            "m=1",
            "=1,2",
            "m=1,2,3,4",
            "m=1,-2",
            "m=1,0.0001",
            "m=1,1e3",
            "m=1,",
            "m=1,1000001",
            "m=1,.5",
        ] {
            assert!(price(wrong).is_err(), "{wrong}");
        }
        assert_eq!(price("m=1000000,0").unwrap().1[0], 1_000_000_000);
    }
}
