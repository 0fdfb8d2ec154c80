//! Which part of a model a rank has.

use std::ops::Range;

use super::Error;
use crate::ModelConfig;

/// Most ranks that a model is divided among.
pub const RANKS_MAX: usize = 64;

/// One rank of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    of: usize,
}

/// The heads of a rank: a whole number of queries' heads for each of keys' and values'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries.
    pub query: Range<usize>,
    /// Heads of keys and values, which ranks have in common where there are fewer than ranks.
    pub kv: Range<usize>,
}

impl Default for Shard {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl Shard {
    /// All of the model.
    pub const WHOLE: Self = Self { rank: 0, of: 1 };

    /// Rank number `rank` of `of`.
    ///
    /// # Errors
    /// There is no such rank, or there are more than [`RANKS_MAX`].
    pub fn new(rank: usize, of: usize) -> Result<Self, Error> {
        if rank >= of || of > RANKS_MAX {
            return Err(Error::Rank { rank, of });
        }
        Ok(Self { rank, of })
    }

    /// All ranks of `of`, in order.
    ///
    /// # Errors
    /// There are none, or more than [`RANKS_MAX`].
    pub fn all(of: usize) -> Result<Vec<Self>, Error> {
        (0..of.max(1)).map(|rank| Self::new(rank, of)).collect()
    }

    /// The rank's number, from 0.
    pub fn rank(self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn of(self) -> usize {
        self.of
    }

    /// Whether there is no other rank.
    pub fn is_whole(self) -> bool {
        self.of == 1
    }

    /// Whether it is the rank that adds what is to be added once.
    pub fn leads(self) -> bool {
        self.rank == 0
    }

    /// Its nearly equal part of `count` things in a row.
    #[must_use]
    pub fn part(self, count: usize) -> Range<usize> {
        divide(count, self.of, self.rank)
    }

    /// Its part of `count` rows of `what`, at least one.
    ///
    /// # Errors
    /// There are fewer rows than ranks.
    pub(crate) fn rows(self, what: &str, count: usize) -> Result<Range<usize>, Error> {
        self.columns(what, count, 1)
    }

    /// Its part of the `count` columns of the tensor `what`, whose rows are in blocks of `block`: whole blocks, as equal as
    /// these allow.
    ///
    /// # Errors
    /// There are fewer blocks than ranks.
    pub(crate) fn columns(self, what: &str, count: usize, block: usize) -> Result<Range<usize>, Error> {
        let blocks = count.div_ceil(block);
        if blocks < self.of {
            return Err(Error::Indivisible {
                what: what.to_owned(),
                of: self.of,
                reason: format!("it has {count} in blocks of {block}"),
                fit: fitting(|of| of <= blocks),
            });
        }
        let part = self.part(blocks);
        // More than `count` only where that is no whole number of blocks, which is refused when the tensor is read.
        Ok((part.start * block).min(count)..(part.end * block).min(count))
    }

    /// Its heads. Where there are at least as many heads of keys and values as ranks, a rank has some of these and the
    /// queries' heads that read them; otherwise a part of the queries' heads that read one.
    ///
    /// # Errors
    /// There are fewer heads of queries than ranks.
    pub fn heads(self, config: &ModelConfig) -> Result<Heads, Error> {
        let (heads, kv_heads) = (config.heads, config.kv_heads);
        if self.of > heads {
            return Err(Error::Indivisible {
                what: "attention".to_owned(),
                of: self.of,
                reason: format!("num_attention_heads is {heads}"),
                fit: fitting(|of| of <= heads),
            });
        }
        let group = heads / kv_heads;
        if self.of <= kv_heads {
            let kv = self.part(kv_heads);
            let query = kv.start * group..kv.end * group;
            return Ok(Heads { query, kv });
        }
        let ranks_of = |kv| divide(self.of, kv_heads, kv);
        let kv = (0..kv_heads)
            .find(|&kv| ranks_of(kv).contains(&self.rank))
            .expect("every rank has a head of keys. This is a bug.");
        let ranks = ranks_of(kv);
        let part = divide(group, ranks.len(), self.rank - ranks.start);
        Ok(Heads {
            query: kv * group + part.start..kv * group + part.end,
            kv: kv..kv + 1,
        })
    }

    /// As [`Shard::heads`], for an output projection `what` whose rows are in blocks of `block`.
    ///
    /// # Errors
    /// As [`Shard::heads`], and when a rank's heads would begin or end inside a block.
    pub(crate) fn heads_in_blocks(
        self,
        config: &ModelConfig,
        what: &str,
        block: usize,
    ) -> Result<Heads, Error> {
        let whole_blocks = |of| {
            (0..of).all(|rank| {
                let heads = Self { rank, of }.heads(config);
                // The end of one rank's heads is the start of the next one's.
                heads.is_ok_and(|heads| (heads.query.start * config.head_dim).is_multiple_of(block))
            })
        };
        let heads = self.heads(config)?;
        if !whole_blocks(self.of) {
            return Err(Error::Indivisible {
                what: what.to_owned(),
                of: self.of,
                reason: format!(
                    "heads of {} would begin inside its blocks of {block}",
                    config.head_dim
                ),
                fit: fitting(whole_blocks),
            });
        }
        Ok(heads)
    }
}

/// Part `part` of `parts` nearly equal parts of `0..count`.
fn divide(count: usize, parts: usize, part: usize) -> Range<usize> {
    let (size, rest) = (count / parts, count % parts);
    let start = part * size + part.min(rest);
    start..start + size + usize::from(part < rest)
}

/// The numbers of ranks that pass a test.
fn fitting(fits: impl Fn(usize) -> bool) -> Vec<usize> {
    (1..=RANKS_MAX).filter(|&of| fits(of)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    fn config(heads: usize, kv_heads: usize, head_dim: usize) -> ModelConfig {
        ModelConfig {
            heads,
            kv_heads,
            head_dim,
            ..tiny()
        }
    }

    #[test]
    fn every_head_has_one_rank_and_reads_its_own_keys() {
        for kv_heads in 1..=6 {
            for group in 1..=5 {
                let config = config(kv_heads * group, kv_heads, 64);
                for of in 1..=config.heads {
                    let ranks = Shard::all(of).unwrap();
                    let mut next = 0;
                    for rank in ranks {
                        let Heads { query, kv } = rank.heads(&config).unwrap();
                        assert_eq!(query.start, next, "{kv_heads} of {group}, {rank:?}");
                        assert!(!query.is_empty() && query.len().is_multiple_of(kv.len()));
                        let local = query.len() / kv.len();
                        for (i, head) in query.clone().enumerate() {
                            assert_eq!(head / group, kv.start + i / local, "head {head} of {rank:?}");
                        }
                        next = query.end;
                    }
                    assert_eq!(next, config.heads);
                }
            }
        }
    }

    #[test]
    fn columns_are_whole_blocks_as_equal_as_can_be() {
        let columns = |of, count, block| -> Vec<usize> {
            let ranks = Shard::all(of).unwrap().into_iter();
            ranks
                .map(|rank| rank.columns("down", count, block).unwrap().len())
                .collect()
        };
        assert_eq!(columns(4, 1536, 256), [512, 512, 256, 256]);
        assert_eq!(columns(2, 4864, 256), [2560, 2304]);
        assert_eq!(columns(3, 97, 1), [33, 32, 32]);
        let error = Shard::new(1, 4).unwrap().columns("down", 512, 256).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("down cannot be divided among 4 ranks") && text.contains("it fits 1, 2 ranks"),
            "{text}"
        );
    }

    #[test]
    fn heads_inside_a_block_are_refused_with_what_fits() {
        let config = config(28, 4, 128);
        let of = |of: usize, block| Shard::new(0, of).unwrap().heads_in_blocks(&config, "o", block);
        assert_eq!(of(2, 256).unwrap().query, 0..14);
        assert_eq!(of(4, 32).unwrap().query, 0..7);
        let error = of(4, 256).unwrap_err().to_string();
        assert!(
            error.contains("blocks of 256") && error.contains("it fits 1, 2 ranks"),
            "{error}"
        );
        let error = of(29, 32).unwrap_err().to_string();
        assert!(error.contains("num_attention_heads is 28"), "{error}");
    }

    #[test]
    fn ranks_that_do_not_exist_are_refused() {
        for (rank, of) in [(0, 0), (1, 1), (4, 4), (0, RANKS_MAX + 1)] {
            assert_eq!(Shard::new(rank, of), Err(Error::Rank { rank, of }));
        }
        assert!(Shard::all(0).is_err());
        assert_eq!(Shard::all(RANKS_MAX).unwrap().len(), RANKS_MAX);
    }
}
