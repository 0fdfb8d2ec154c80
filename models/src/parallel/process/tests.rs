//! Ranks as threads, joined by the sockets that join processes.

use std::thread;
use std::time::Instant;

use super::*;
use crate::AttentionRow;

const LONG: Duration = Duration::from_mins(1);

/// The ranks of a group of `of`, joined by sockets.
fn group(of: usize, timeout: Duration) -> Vec<Processes> {
    let pairs: Vec<_> = (1..of).map(|_| UnixStream::pair().unwrap()).collect();
    let (first, others): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let others = others.into_iter().enumerate().map(|(at, stream)| {
        let shard = Shard::new(at + 1, of).unwrap();
        Processes::other(shard, stream, timeout).unwrap()
    });
    let first = Processes::first(first, timeout).unwrap();
    [first].into_iter().chain(others).collect()
}

/// Runs `work` as each rank, and returns what they make in order of rank.
fn ranks<T: Send>(ranks: Vec<Processes>, work: impl Fn(Processes) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = ranks
            .into_iter()
            .map(|rank| scope.spawn(move || work(rank)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn tensor(values: &[f32], rows: usize) -> Tensor {
    Tensor::from_slice(values, (rows, values.len() / rows), &Device::Cpu).unwrap()
}

#[test]
fn sums_and_columns_are_in_the_order_of_ranks() {
    // Added in another order, one is left or nothing.
    let values = [1.0e8_f32, 1.0, -1.0e8, 1.0];
    let ended = ranks(group(4, LONG), |rank| {
        let own = rank.shard().rank();
        for round in 0..20 {
            let x = tensor(&[values[own], round as f32], 2);
            rank.all_reduce(&x).unwrap();
            assert_eq!(x.to_vec2::<f32>().unwrap(), [[1.0], [4.0 * round as f32]]);
        }
        // More than a socket holds.
        let many = tensor(&vec![1.0; 1 << 19], 1);
        rank.all_reduce(&many).unwrap();
        assert_eq!(many.to_vec2::<f32>().unwrap(), [vec![4.0; 1 << 19]]);
        let part = rank.shard().part(6);
        let row = |row: usize| part.clone().map(move |column| (10 * row + column) as f32);
        let own: Vec<f32> = row(0).chain(row(1)).collect();
        let all = rank.all_gather(tensor(&own, 2), 6).unwrap();
        let expected = [
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            [10.0, 11.0, 12.0, 13.0, 14.0, 15.0],
        ];
        assert_eq!(all.to_vec2::<f32>().unwrap(), expected);
        rank
    });
    assert_eq!(ended.len(), 4);
}

#[test]
fn steps_are_given_once_all_are_ready_until_the_first_is_gone() {
    let rows = [AttentionRow {
        tokens: 0..2,
        context_len: 2,
        block_table: vec![7],
    }];
    let input = ForwardInput {
        tokens: &[3, 4],
        positions: &[0, 1],
        slots: &[112, 113],
        rows: &rows,
        logits: &[1],
    };
    let steps = ranks(group(3, LONG), |rank| {
        if rank.shard().leads() {
            rank.wait_ready(LONG).unwrap();
            for _ in 0..3 {
                rank.give(&input).unwrap();
            }
            return 3;
        }
        rank.tell_ready().unwrap();
        let mut steps = 0;
        while let Some(step) = rank.take().unwrap() {
            assert_eq!(step.forward_input().tokens, input.tokens);
            assert_eq!(step.forward_input().rows, rows);
            steps += 1;
        }
        steps
    });
    assert_eq!(steps, [3, 3, 3]);
}

#[test]
fn a_rank_that_does_not_load_is_waited_for_no_longer_than_agreed() {
    let told = ranks(group(2, LONG), |rank| {
        if !rank.shard().leads() {
            // Until the first rank gives up.
            return rank
                .take()
                .map(|step| step.is_none())
                .map_err(|error| error.to_string());
        }
        rank.wait_ready(Duration::from_millis(50))
            .map(|()| true)
            .map_err(|error| error.to_string())
    });
    let error = told[0].clone().unwrap_err();
    assert!(error.contains("rank 1 has not answered for 0.05 s"), "{error}");
}

#[test]
fn a_rank_that_leaves_or_fails_ends_the_others() {
    for fails in [true, false] {
        let began = Instant::now();
        let errors = ranks(group(3, LONG), |rank| {
            if rank.shard().rank() == 2 {
                if fails {
                    rank.stop("no memory");
                }
                return None;
            }
            let x = tensor(&[1.0], 1);
            let first = rank.all_reduce(&x).unwrap_err().to_string();
            assert_eq!(first, rank.all_reduce(&x).unwrap_err().to_string());
            Some((first, rank))
        });
        let expected = if fails {
            "rank 2 failed: no memory"
        } else {
            "rank 2 is gone"
        };
        // The second learns it of the first.
        for (error, _) in errors.into_iter().flatten() {
            assert!(error.contains(expected), "{error}");
        }
        assert!(began.elapsed() < LONG / 2);
    }
}

#[test]
fn who_finds_a_socket_closed_reads_the_reason_in_it() {
    let mut group = group(2, LONG);
    let (other, first) = (group.pop().unwrap(), group.pop().unwrap());
    // Before the other has begun to send.
    first.stop("no memory");
    let told = other.all_reduce(&tensor(&[1.0], 1)).unwrap_err().to_string();
    assert!(told.contains("rank 0 failed: no memory"), "{told}");
}

#[test]
fn a_rank_that_hangs_is_waited_for_no_longer_than_agreed() {
    let mut group = group(3, Duration::from_millis(50));
    // It is there, and does nothing.
    let _hanging = group.pop();
    let (second, first) = (group.pop().unwrap(), group.pop().unwrap());
    // What the second brings is there before anybody waits for it: as a thread it might begin too late.
    second.lock().ask(&[1.0]).unwrap();
    let error = first.all_reduce(&tensor(&[1.0], 1)).unwrap_err().to_string();
    assert!(error.contains("rank 2 has not answered for 0.05 s"), "{error}");
    let told = second.all_reduce(&tensor(&[1.0], 1)).unwrap_err().to_string();
    assert!(told.contains("rank 0 failed: rank 2 has not answered"), "{told}");
}

#[test]
fn numbers_of_another_shape_are_refused() {
    let errors = ranks(group(2, LONG), |rank| {
        let x = tensor(&[1.0, 2.0][..=rank.shard().rank()], 1);
        (rank.all_reduce(&x).unwrap_err().to_string(), rank)
    });
    assert!(
        errors[0].0.contains("rank 1 sent a frame that is too long"),
        "{}",
        errors[0].0
    );
    assert!(errors[1].0.contains("rank 0 failed"), "{}", errors[1].0);
}
