use super::*;
use crate::hash::Hasher as Keys;

const SALT: Salt = Salt::Shared(0);

fn keys(tokens: &[Token]) -> Vec<BlockKey> {
    let keys = Keys::new(1);
    let mut chain = vec![keys.root(SALT)];
    for block in tokens.chunks_exact(2) {
        chain.push(keys.chain(chain[chain.len() - 1], block));
    }
    chain.split_off(1)
}

/// Computes and publishes a text in blocks of two, as a sequence does.
fn compute(pool: &mut BlockPool, tokens: &[Token]) -> Vec<BlockId> {
    let keys = keys(tokens);
    let mut table = pool.find_prefix(SALT, &keys, tokens);
    pool.hold(&table, 0);
    while table.len() < tokens.len() / 2 {
        let (at, id) = (table.len(), pool.alloc(0).unwrap());
        table.push(
            pool.publish(SALT, &table, id, keys[at], &tokens[at * 2..at * 2 + 2])
                .unwrap(),
        );
    }
    table
}

#[test]
fn keys_are_their_own_hashes() {
    let hash = |key: BlockKey| {
        let mut hasher = KeyHasher::default();
        std::hash::Hash::hash(&key, &mut hasher);
        hasher.finish()
    };
    assert_eq!(hash(7 << 64 | 9), 9);
    assert_eq!(hash(u128::from(u64::MAX)), u64::MAX);
}

#[test]
#[should_panic(expected = "This is a bug.")]
fn hashing_anything_but_a_key_is_a_bug() {
    KeyHasher::default().write(&[1]);
}

fn check(pool: &BlockPool, tables: &[&[BlockId]]) {
    assert_eq!(pool.check(tables.iter().copied()), Ok(()));
}

#[test]
fn a_match_leaves_one_token_to_compute() {
    let mut pool = BlockPool::new(8, 2);
    let text = [1, 2, 3, 4, 5, 6];
    let mut table = compute(&mut pool, &text);
    assert_eq!((pool.total(), pool.available(), pool.cached()), (8, 5, 0));
    assert_eq!(pool.find_prefix(SALT, &keys(&text), &text), table[..2]);
    assert_eq!(
        pool.find_prefix(SALT, &keys(&text), &[1, 2, 3, 4, 5, 6, 7]),
        table
    );
    assert_eq!(pool.find_prefix(SALT, &keys(&text), &text[..3]), table[..1]);
    assert_eq!(
        pool.find_prefix(SALT, &keys(&text), &text[..2]),
        Vec::<BlockId>::new()
    );
    assert_eq!(pool.find_prefix(SALT, &[], &[]), Vec::<BlockId>::new());
    pool.release(&mut table);
    assert_eq!((table.len(), pool.available(), pool.cached()), (0, 8, 3));
    check(&pool, &[]);
}

#[test]
fn other_salts_and_colliding_keys_find_nothing() {
    let mut pool = BlockPool::new(8, 2);
    let text = [1, 2, 3, 4, 5];
    let mut table = compute(&mut pool, &text);
    let keys = keys(&text);
    for salt in [Salt::Shared(1), Salt::Private(0)] {
        assert_eq!(pool.find_prefix(salt, &keys, &text), Vec::<BlockId>::new());
    }
    // The keys match, the tokens don't; or the tokens do and what precedes them doesn't.
    assert_eq!(
        pool.find_prefix(SALT, &keys, &[1, 9, 3, 4, 5]),
        Vec::<BlockId>::new()
    );
    assert_eq!(
        pool.find_prefix(SALT, &keys[1..], &[3, 4, 5]),
        Vec::<BlockId>::new()
    );
    let own = pool.alloc(0).unwrap();
    assert_eq!(pool.publish(SALT, &[], own, keys[0], &[7, 7]), None);
    check(&pool, &[&table, &[own]]);
    pool.release(&mut vec![own]);
    pool.release(&mut table);
    check(&pool, &[]);
}

#[test]
fn equal_blocks_become_one() {
    let mut pool = BlockPool::new(4, 2);
    let mut first = compute(&mut pool, &[1, 2, 3, 4]);
    // A second sequence computed the same two blocks at the same time.
    let key = keys(&[1, 2, 3, 4]);
    let mut second = Vec::new();
    for (at, tokens) in [[1, 2], [3, 4]].iter().enumerate() {
        let own = pool.alloc(0).unwrap();
        let shared = pool.publish(SALT, &second, own, key[at], tokens).unwrap();
        assert_eq!(shared, first[at]);
        second.push(shared);
    }
    check(&pool, &[&first, &second]);
    assert_eq!(pool.available(), 2);
    pool.release(&mut first);
    assert_eq!((pool.available(), pool.cached()), (2, 0));
    pool.release(&mut second);
    assert_eq!((pool.available(), pool.cached()), (4, 2));
}

#[test]
fn the_longest_unused_is_evicted_first_and_tails_before_heads() {
    let mut pool = BlockPool::new(5, 2);
    let mut old = compute(&mut pool, &[1, 1, 2, 2]);
    let mut new = compute(&mut pool, &[3, 3, 4, 4]);
    let (old_ids, new_ids) = (old.clone(), new.clone());
    pool.release(&mut old);
    pool.release(&mut new);
    // The empty block goes first, then old's tail, old's head, new's tail.
    let mut taken = vec![pool.alloc(0).unwrap()];
    assert_eq!(pool.cached(), 4);
    for expected in [old_ids[1], old_ids[0], new_ids[1]] {
        taken.push(pool.alloc(0).unwrap());
        assert_eq!(taken.last(), Some(&expected));
        check(&pool, &[&taken]);
    }
    // What was evicted is not found; what was not, is.
    assert_eq!(
        pool.find_prefix(SALT, &keys(&[1, 1, 2, 2]), &[1, 1, 2, 2, 0]),
        Vec::<BlockId>::new()
    );
    assert_eq!(
        pool.find_prefix(SALT, &keys(&[3, 3, 4, 4]), &[3, 3, 4, 4, 0]),
        new_ids[..1]
    );
    // Holding it again saves it.
    assert!(pool.fits(&new_ids[..1], 0, 0));
    assert!(!pool.fits(&new_ids[..1], 1, 0) && !pool.fits(&new_ids[..1], 0, 1));
    assert!(pool.fits(&[], 1, 0) && !pool.fits(&[], 1, 1));
    pool.hold(&new_ids[..1], 0);
    assert_eq!(pool.alloc(0), None);
    taken.push(new_ids[0]);
    check(&pool, &[&taken]);
}

#[test]
fn using_a_block_again_renews_it() {
    let mut pool = BlockPool::new(2, 2);
    let mut first = compute(&mut pool, &[1, 1]);
    let mut second = compute(&mut pool, &[2, 2]);
    let second_id = second[0];
    pool.release(&mut first);
    pool.release(&mut second);
    let mut again = pool.find_prefix(SALT, &keys(&[1, 1]), &[1, 1, 0]);
    pool.hold(&again, 0);
    pool.release(&mut again);
    assert_eq!(pool.alloc(0), Some(second_id));
}

#[test]
#[should_panic(expected = "This is a bug.")]
fn releasing_twice_is_a_bug() {
    let mut pool = BlockPool::new(2, 2);
    let id = pool.alloc(0).unwrap();
    pool.release(&mut vec![id, id]);
}

#[test]
#[should_panic(expected = "This is a bug.")]
fn publishing_twice_is_a_bug() {
    let mut pool = BlockPool::new(2, 2);
    let id = pool.alloc(0).unwrap();
    pool.publish(SALT, &[], id, 1, &[1, 1]);
    pool.publish(SALT, &[], id, 2, &[2, 2]);
}

#[test]
#[should_panic(expected = "This is a bug.")]
fn publishing_a_part_is_a_bug() {
    let mut pool = BlockPool::new(2, 2);
    let id = pool.alloc(0).unwrap();
    pool.publish(SALT, &[], id, 1, &[1]);
}

/// `check` finds each kind of damage.
#[test]
fn damage_is_found() {
    let sound = || {
        let mut pool = BlockPool::new(6, 2);
        let table = compute(&mut pool, &[1, 2, 3, 4]);
        let mut free = compute(&mut pool, &[5, 6, 7, 8]);
        pool.release(&mut free);
        (pool, table)
    };
    let damage = |harm: &dyn Fn(&mut BlockPool, &mut Vec<BlockId>)| {
        let (mut pool, mut table) = sound();
        harm(&mut pool, &mut table);
        pool.check(std::iter::once(table.as_slice())).expect_err("damage")
    };
    assert!(damage(&|_, table| table.push(99)).contains("names block 99"));
    assert!(damage(&|_, table| table.truncate(1)).contains("holders"));
    assert!(damage(&|pool, _| _ = pool.empty.pop()).contains("are not 6"));
    assert!(damage(&|pool, _| _ = pool.by_key.insert(7, 0)).contains("findable by"));
    assert!(damage(&|pool, table| pool.blocks[table[1] as usize].content = None).contains("findable by"));
    assert!(damage(&|pool, table| pool.blocks[table[0] as usize].content = None).contains("which is not"));
    let key = |pool: &BlockPool, id: BlockId| pool.blocks[id as usize].content.as_ref().unwrap().key;
    let unfindable = damage(&|pool, table| {
        let key = key(pool, table[0]);
        pool.by_key.remove(&key);
    });
    assert!(unfindable.contains("not found by its key"));
    let lost = damage(&|pool, _| _ = pool.cached.pop_first());
    assert!(lost.contains("neither held nor cached"), "{lost}");
    let swapped = damage(&|pool, _| {
        let (first, id) = pool.cached.pop_first().unwrap();
        let (last, parent) = pool.cached.pop_first().unwrap();
        pool.cached.insert(first, parent);
        pool.cached.insert(last, id);
        pool.blocks[parent as usize].released_at = first;
        pool.blocks[id as usize].released_at = last;
    });
    assert!(swapped.contains("would be evicted before"), "{swapped}");
    let (mut pool, mut table) = sound();
    let head = table.remove(0);
    pool.release(&mut vec![head]);
    let orphan = pool.check(std::iter::once(table.as_slice())).unwrap_err();
    assert!(orphan.contains("would be evicted before"), "{orphan}");
    let (mut pool, table) = sound();
    let own = pool.alloc(0).unwrap();
    pool.hold(&[own], 0);
    let shared = pool
        .check([table.as_slice(), &[own, own]].into_iter())
        .unwrap_err();
    assert!(shared.contains("shared but not published"), "{shared}");
}

#[test]
fn a_begun_block_is_found_by_its_own_text_and_by_one() {
    let mut pool = BlockPool::new(4, 4);
    let keys = Keys::new(1);
    let root = keys.root(SALT);
    let (full, begun) = ([1, 2, 3, 4], [5, 6]);
    let first = pool.alloc(0).unwrap();
    let key = keys.chain(root, &full);
    pool.publish(SALT, &[], first, key, &full).unwrap();
    let second = pool.alloc(0).unwrap();
    let begun_key = keys.chain(key, &begun);
    pool.park(SALT, &[first], second, begun_key, &begun);
    // An equal one that is parked beside it is not kept.
    let other = pool.alloc(0).unwrap();
    pool.park(SALT, &[first], other, begun_key, &begun);
    pool.release(&mut vec![other]);
    assert_eq!(pool.cached(), 0);
    pool.release(&mut vec![first, second]);
    assert_eq!((pool.available(), pool.cached()), (4, 2));
    check(&pool, &[]);
    assert_eq!(pool.find_begun(SALT, &[first], begun_key, &begun), Some(second));
    assert_eq!(pool.find_begun(SALT, &[], begun_key, &begun), None);
    assert_eq!(pool.find_begun(SALT, &[first], begun_key, &[5, 7]), None);
    pool.hold(&[first, second], 0);
    pool.unpark(second);
    assert_eq!(pool.find_begun(SALT, &[first], begun_key, &begun), None);
    check(&pool, &[&[first, second]]);
    // Full, it is published as any other.
    let rest = [5, 6, 7, 8];
    let rest_key = keys.chain(key, &rest);
    assert_eq!(
        pool.publish(SALT, &[first], second, rest_key, &rest),
        Some(second)
    );
    check(&pool, &[&[first, second]]);
}
