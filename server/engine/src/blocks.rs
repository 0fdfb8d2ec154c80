//! The pool of cache blocks: reference counts, and a prefix cache that finds full blocks again by content.
//!
//! A sequence that gives way also parks the block that it has begun, where such sequences alone look for it: if nobody
//! needed the room meanwhile, it goes on where it was and nothing is computed again.
//!
//! Blocks are released tail first and a published block's parent is always published too (see `publish`), so among
//! the blocks nobody holds, a child is older than its parent and evicted before it: every findable block has a
//! findable parent, and a hit can be verified exactly by comparing tokens and parent.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use crate::hash::{BlockKey, Salt};
use crate::request::Token;

/// Index of a block in the pool.
pub(crate) type BlockId = u32;

/// The pool. Every block is in exactly one of three states: held (`holders > 0`), cached (findable, nobody holds it)
/// or empty.
#[derive(Debug)]
pub(crate) struct BlockPool {
    block_size: usize,
    blocks: Vec<Block>,
    empty: Vec<BlockId>,
    /// Cached blocks by the time they were released: the first is evicted next.
    cached: BTreeMap<u64, BlockId>,
    by_key: HashMap<BlockKey, BlockId, BuildHasherDefault<KeyHasher>>,
    /// Counts releases.
    releases: u64,
    /// How many of the held blocks each flow took. One that flows share counts for the one that took it, until nobody
    /// holds it, so that the counts add up to what is held.
    held: BTreeMap<u64, usize>,
}

#[derive(Debug, Default)]
struct Block {
    holders: u32,
    /// The flow that took it, while somebody holds it.
    flow: u64,
    /// Its key in `cached` while it is there.
    released_at: u64,
    content: Option<Content>,
}

#[derive(Debug)]
struct Content {
    key: BlockKey,
    source: Source,
    tokens: Box<[Token]>,
}

/// What came before a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Root(Salt),
    Parent(BlockId),
}

/// Keys are uniform already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("block keys are written as one number. This is a bug.");
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

impl BlockPool {
    pub(crate) fn new(blocks: usize, block_size: usize) -> Self {
        Self {
            block_size,
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            empty: (0..blocks as BlockId).rev().collect(),
            cached: BTreeMap::new(),
            by_key: HashMap::default(),
            releases: 0,
            held: BTreeMap::new(),
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that `alloc` can still give.
    pub(crate) fn available(&self) -> usize {
        self.empty.len() + self.cached.len()
    }

    pub(crate) fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Held blocks that count for a flow.
    pub(crate) fn held(&self, flow: u64) -> usize {
        self.held.get(&flow).copied().unwrap_or(0)
    }

    /// How many blocks of a table nobody else holds.
    pub(crate) fn sole(&self, table: &[BlockId]) -> usize {
        let sole = |id: &&BlockId| self.blocks[**id as usize].holders == 1;
        table.iter().filter(sole).count()
    }

    /// The longest chain of findable blocks at the start of `tokens`, leaving at least one token to compute. `keys`
    /// are those of the full blocks of `tokens`. Nothing is held yet.
    pub(crate) fn find_prefix(&self, salt: Salt, keys: &[BlockKey], tokens: &[Token]) -> Vec<BlockId> {
        let limit = tokens.len().saturating_sub(1) / self.block_size;
        let mut found = Vec::new();
        for (key, tokens) in keys.iter().zip(tokens.chunks_exact(self.block_size)).take(limit) {
            let source = Source::after(salt, &found);
            let Some(id) = self.by_key.get(key).copied() else {
                break;
            };
            if !self.is_content(id, source, tokens) {
                break;
            }
            found.push(id);
        }
        found
    }

    /// How many blocks nobody holds.
    pub(crate) fn unheld(&self, ids: &[BlockId]) -> usize {
        let unheld = |id: &&BlockId| self.blocks[**id as usize].holders == 0;
        ids.iter().filter(unheld).count()
    }

    /// How many blocks would count for a flow that holds them, now or once others have let them go.
    pub(crate) fn foreign(&self, ids: &[BlockId], flow: u64) -> usize {
        let foreign = |id: &&BlockId| {
            let block = &self.blocks[**id as usize];
            block.holders == 0 || block.flow != flow
        };
        ids.iter().filter(foreign).count()
    }

    /// Whether holding `found` and allocating `fresh` more would leave `reserve` blocks available.
    pub(crate) fn fits(&self, found: &[BlockId], fresh: usize, reserve: usize) -> bool {
        fresh + self.unheld(found) + reserve <= self.available()
    }

    /// Adds a holder, of this flow, to each block.
    pub(crate) fn hold(&mut self, ids: &[BlockId], flow: u64) {
        for id in ids {
            let block = &mut self.blocks[*id as usize];
            if block.holders == 0 {
                block.flow = flow;
                *self.held.entry(flow).or_default() += 1;
                let removed = self.cached.remove(&block.released_at);
                assert_eq!(
                    removed,
                    Some(*id),
                    "a held-again block was not cached. This is a bug."
                );
            }
            block.holders += 1;
        }
    }

    /// A block with one holder, of this flow, and no content; evicts the longest unused cached block when none is empty.
    pub(crate) fn alloc(&mut self, flow: u64) -> Option<BlockId> {
        let id = match self.empty.pop() {
            Some(id) => id,
            None => self.evict()?,
        };
        let block = &mut self.blocks[id as usize];
        assert_eq!(
            block.holders, 0,
            "block {id} was given out while held. This is a bug."
        );
        block.holders = 1;
        block.flow = flow;
        *self.held.entry(flow).or_default() += 1;
        Some(id)
    }

    fn evict(&mut self) -> Option<BlockId> {
        let (_, id) = self.cached.pop_first()?;
        let content = self.blocks[id as usize].content.take();
        let key = content.expect("a cached block has content. This is a bug.").key;
        let removed = self.by_key.remove(&key);
        assert_eq!(
            removed,
            Some(id),
            "a cached block was not findable. This is a bug."
        );
        Some(id)
    }

    /// Makes a computed, full block findable and returns the block the caller's table must name in its place: the
    /// same one, or an equal one published before (the caller's own is then released). `before` are the table's
    /// blocks in front of it, all published. `None` if the key is taken by other content: neither this block nor
    /// its successors can be published.
    pub(crate) fn publish(
        &mut self,
        salt: Salt,
        before: &[BlockId],
        id: BlockId,
        key: BlockKey,
        tokens: &[Token],
    ) -> Option<BlockId> {
        assert_eq!(
            tokens.len(),
            self.block_size,
            "only full blocks are published. This is a bug."
        );
        let source = Source::after(salt, before);
        match self.by_key.get(&key).copied() {
            Some(equal) if self.is_content(equal, source, tokens) => {
                self.hold(&[equal], self.blocks[id as usize].flow);
                self.release_one(id);
                Some(equal)
            }
            Some(_) => None,
            None => {
                self.name(id, key, source, tokens);
                Some(id)
            }
        }
    }

    /// Makes the begun block of a sequence that gives way findable, for [`BlockPool::find_begun`] alone: its holder releases
    /// it next. An equal one that is parked already stays; nothing happens if the key is taken by another.
    pub(crate) fn park(
        &mut self,
        salt: Salt,
        before: &[BlockId],
        id: BlockId,
        key: BlockKey,
        tokens: &[Token],
    ) {
        assert!(
            (1..self.block_size).contains(&tokens.len()),
            "only begun blocks are parked. This is a bug."
        );
        if !self.by_key.contains_key(&key) {
            self.name(id, key, Source::after(salt, before), tokens);
        }
    }

    /// The parked block of these tokens after `found`, if it is still there.
    pub(crate) fn find_begun(
        &self,
        salt: Salt,
        found: &[BlockId],
        key: BlockKey,
        tokens: &[Token],
    ) -> Option<BlockId> {
        let id = self.by_key.get(&key).copied()?;
        self.is_content(id, Source::after(salt, found), tokens)
            .then_some(id)
    }

    /// A parked block that is held again will be written to, so nobody else may find it.
    pub(crate) fn unpark(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        assert_eq!(block.holders, 1, "block {id} is written by one. This is a bug.");
        let content = block.content.take();
        let key = content.expect("a parked block has content. This is a bug.").key;
        self.by_key.remove(&key);
    }

    fn name(&mut self, id: BlockId, key: BlockKey, source: Source, tokens: &[Token]) {
        let content = Content {
            key,
            source,
            tokens: tokens.into(),
        };
        let previous = self.blocks[id as usize].content.replace(content);
        assert!(
            previous.is_none(),
            "block {id} was published twice. This is a bug."
        );
        self.by_key.insert(key, id);
    }

    /// Gives up one hold on each block of the table, the last block first, and empties it.
    pub(crate) fn release(&mut self, table: &mut Vec<BlockId>) {
        while let Some(id) = table.pop() {
            self.release_one(id);
        }
    }

    fn release_one(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        assert!(
            block.holders > 0,
            "block {id} was released while free. This is a bug."
        );
        block.holders -= 1;
        if block.holders > 0 {
            return;
        }
        let held = self
            .held
            .get_mut(&block.flow)
            .expect("a held block counts for a flow. This is a bug.");
        *held -= 1;
        if *held == 0 {
            self.held.remove(&block.flow);
        }
        if block.content.is_some() {
            self.releases += 1;
            block.released_at = self.releases;
            self.cached.insert(self.releases, id);
        } else {
            self.empty.push(id);
        }
    }

    fn is_content(&self, id: BlockId, source: Source, tokens: &[Token]) -> bool {
        let content = self.blocks[id as usize].content.as_ref();
        content.is_some_and(|content| content.source == source && *content.tokens == *tokens)
    }

    /// Checks the pool against the tables that hold its blocks; says what is wrong.
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) -> Result<(), String> {
        let mut holders = vec![0_u32; self.blocks.len()];
        for id in tables.flatten() {
            let Some(count) = holders.get_mut(*id as usize) else {
                return Err(format!("a table names block {id} of {}", self.blocks.len()));
            };
            *count += 1;
        }
        let mut held = BTreeMap::new();
        let mut findable = 0;
        for (id, (block, holders)) in self.blocks.iter().zip(&holders).enumerate() {
            if block.holders != *holders {
                return Err(format!(
                    "block {id} counts {} holders, tables {holders}",
                    block.holders
                ));
            }
            if block.holders > 0 {
                *held.entry(block.flow).or_default() += 1;
            }
            let Some(content) = &block.content else {
                if block.holders > 1 {
                    return Err(format!("block {id} is shared but not published"));
                }
                continue;
            };
            findable += 1;
            self.check_content(id as BlockId, block, content)?;
        }
        if held != self.held {
            return Err(format!(
                "flows hold {held:?} blocks, {:?} were counted",
                self.held
            ));
        }
        let held: usize = held.values().sum();
        if held + self.available() != self.blocks.len() {
            let [cached, empty, total] = [self.cached.len(), self.empty.len(), self.blocks.len()];
            return Err(format!(
                "{held} held + {cached} cached + {empty} empty blocks are not {total}"
            ));
        }
        if findable != self.by_key.len() {
            return Err(format!(
                "{findable} blocks are findable by {} keys",
                self.by_key.len()
            ));
        }
        Ok(())
    }

    fn check_content(&self, id: BlockId, block: &Block, content: &Content) -> Result<(), String> {
        if self.by_key.get(&content.key) != Some(&id) {
            return Err(format!("published block {id} is not found by its key"));
        }
        if block.holders == 0 && self.cached.get(&block.released_at) != Some(&id) {
            return Err(format!("published block {id} is neither held nor cached"));
        }
        let Source::Parent(parent) = content.source else {
            return Ok(());
        };
        let before = &self.blocks[parent as usize];
        if before.content.is_none() {
            return Err(format!(
                "published block {id} follows block {parent}, which is not"
            ));
        }
        if before.holders == 0 && (block.holders > 0 || block.released_at > before.released_at) {
            return Err(format!(
                "block {parent} would be evicted before block {id}, which follows it"
            ));
        }
        Ok(())
    }
}

impl Source {
    fn after(salt: Salt, before: &[BlockId]) -> Self {
        before
            .last()
            .map_or(Self::Root(salt), |parent| Self::Parent(*parent))
    }
}

#[cfg(test)]
mod tests;
