//! Servers that are asked for more than there is.

use super::*;

/// What a server gets that asks whenever it lacks something, for so long.
fn hammer(world: &mut World, who: &[usize], requests: usize, tokens: i64) -> usize {
    let mut begun = 0;
    for at in 0..requests {
        let server = &mut world.servers[who[at % who.len()]];
        for _ in 0..3 {
            match server.try_begin(&world.limited, world.now_ms, tokens) {
                Ok(_) => {
                    begun += 1;
                    server.settle(&world.limited, 100);
                    server.write(&mut world.shared, &world.limited, true, &mut world.lapsed);
                    break;
                }
                Err(Short::Over(_)) => break,
                Err(Short::Asked) => server.exchange(&mut world.shared, world.now_ms, false),
            }
        }
        world.now_ms += 2;
        if at % 250 == 0 {
            for server in &mut world.servers {
                server.exchange(&mut world.shared, world.now_ms, true);
            }
        }
    }
    begun
}

#[test]
fn one_busy_server_gets_all_of_a_limit_and_two_no_more() {
    for who in [&[0][..], &[0, 1], &[0, 0, 0, 1]] {
        let mut world = World::new(&[0, 7_000]);
        world.limited = limited(&[(Metric::RequestsPerMinute, 600), (Metric::Parallel, 50)]);
        let begun = hammer(&mut world, who, 5_000, 1);
        // Ten seconds: a minute's worth, and what came back.
        assert!((690..=700).contains(&begun), "{who:?}: {begun}");
        world = World::new(&[0, 7_000]);
        world.limited = limited(&[(Metric::TokensPerDay, 1_000)]);
        let begun = hammer(&mut world, who, 2_000, 10);
        assert_eq!(begun, 100, "{who:?}");
    }
}

#[test]
fn the_smallest_limits_are_limits() {
    let mut world = World::new(&[0, 7_000]);
    world.limited = limited(&[(Metric::RequestsPerMinute, 1)]);
    assert_eq!(hammer(&mut world, &[0, 1], 3_000, 1), 1);
    world.now_ms += MINUTE_MS;
    assert_eq!(hammer(&mut world, &[1, 0], 3_000, 1), 1);
    // One place: whoever has it keeps the other out, until it has not used it for a second, or is gone for as long as a lease.
    let mut world = World::new(&[0, 7_000]);
    world.limited = limited(&[(Metric::Parallel, 1)]);
    assert!(hammer(&mut world, &[0], 500, 1) > 490);
    for _ in 0..2 {
        world.now_ms += TICK_MS;
        world.servers[0].exchange(&mut world.shared, world.now_ms, true);
    }
    assert!(hammer(&mut world, &[1], 500, 1) > 490);
    let now_ms = world.servers[1].shared_ms(world.now_ms);
    world.servers[1].lessee.begin(&world.limited, now_ms).unwrap();
    assert_eq!(hammer(&mut world, &[0], 1, 1), 0);
    world.now_ms += LEASE_MS;
    assert_eq!(hammer(&mut world, &[0], 1, 1), 1);
}

/// A request whose lease suffices asks nobody, and what is left goes back within a second.
#[test]
fn what_is_leased_is_spent_without_asking_and_given_back() {
    let mut world = World::new(&[0, 0]);
    world.limited = limited(&[(Metric::RequestsPerMinute, 6_000)]);
    let mut asked = 0;
    for _ in 0..1_000 {
        let server = &mut world.servers[0];
        if let Err(short) = server.try_begin(&world.limited, world.now_ms, 1) {
            assert_eq!(short, Short::Asked);
            asked += 1;
            server.exchange(&mut world.shared, world.now_ms, false);
            server.try_begin(&world.limited, world.now_ms, 1).unwrap();
        }
        server.settle(&world.limited, 100);
        if server.lessee.is_hungry() {
            server.exchange(&mut world.shared, world.now_ms, false);
        }
        world.now_ms += 5;
    }
    assert!(asked < 20, "{asked} of a thousand waited");
    let leased = |world: &World| world.shared.leases.values().map(|(held, _)| held).sum::<i64>();
    assert!(leased(&world) > 0);
    for _ in 0..3 {
        world.now_ms += TICK_MS;
        world.servers[0].exchange(&mut world.shared, world.now_ms, true);
    }
    assert_eq!(leased(&world), 0);
    assert!(world.servers[0].lessee.ask(world.now_ms, true).is_empty());
}

/// Without the database what is leased can be spent until the lease ends, and nothing after.
#[test]
fn a_lease_ends() {
    let mut world = World::new(&[0]);
    world.limited = limited(&[(Metric::RequestsPerMinute, 6_000)]);
    hammer(&mut world, &[0], 300, 1);
    let server = &mut world.servers[0];
    let now_ms = server.shared_ms(world.now_ms);
    server.lessee.begin(&world.limited, now_ms).unwrap();
    let ended = server.lessee.begin(&world.limited, now_ms + LEASE_MS);
    assert_eq!(ended, Err(Short::Asked));
}

/// What was spent by a server that died before it said so is in its rows, and what was not comes back.
#[test]
fn what_a_dead_server_had_comes_back() {
    let mut world = World::new(&[0, 0]);
    world.limited = limited(&[(Metric::TokensPerDay, 1_000)]);
    assert_eq!(hammer(&mut world, &[0], 30, 10), 30);
    let server = &mut world.servers[0];
    server.exchange(&mut world.shared, world.now_ms, true);
    for _ in 0..6 {
        if server.try_begin(&world.limited, world.now_ms, 100).is_err() {
            server.exchange(&mut world.shared, world.now_ms, false);
            server.try_begin(&world.limited, world.now_ms, 100).unwrap();
        }
    }
    world.go(0, Step::Crash(true), 2);
    let begun = hammer(&mut world, &[1], 100, 10);
    assert_eq!(begun, 10, "the rest of a thousand");
    world.now_ms += LEASE_MS;
    let before = world.shared.counts[&counter(Metric::TokensPerDay, world.now_ms)].0;
    let rest = usize::try_from((1_000 - before) / 10).unwrap();
    assert_eq!(rest, 60);
    assert_eq!(hammer(&mut world, &[1], 200, 10), rest);
}

/// Whoever lowers a limit has it kept at once, also where requests come without a pause.
#[test]
fn a_limit_that_is_lowered_holds_for_those_that_are_busy() {
    for servers in [&[0][..], &[0, 7_000]] {
        let mut world = World::new(servers);
        world.limited = limited(&[(Metric::Parallel, 8)]);
        let mut running = vec![0; servers.len()];
        for at in 0..4_000 {
            if at == 1_000 {
                world.limited = limited(&[(Metric::Parallel, 2)]);
            }
            let who = at % servers.len();
            let server = &mut world.servers[who];
            let now_ms = server.shared_ms(world.now_ms);
            // One ends, and the next comes at once.
            if running[who] > 0 && at % 7 != 0 {
                server.lessee.end(&world.limited);
                running[who] -= 1;
            }
            for _ in 0..3 {
                match server.lessee.begin(&world.limited, now_ms) {
                    Ok(()) => running[who] += 1,
                    Err(Short::Over(_)) => break,
                    Err(Short::Asked) => server.exchange(&mut world.shared, world.now_ms, false),
                }
            }
            world.now_ms += 2;
            if at % 250 == 0 {
                for server in &mut world.servers {
                    server.exchange(&mut world.shared, world.now_ms, true);
                }
            }
            let all: usize = running.iter().sum();
            assert!(all <= 8, "{at}: {all}");
            // What ran when it was lowered may end first.
            assert!(all <= 2 || at < 1_500, "{at}: {all} of 2");
        }
        assert!(running.iter().sum::<usize>() > 0);
    }
}
