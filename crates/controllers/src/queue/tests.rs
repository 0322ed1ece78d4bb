use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

fn queue() -> Queue<&'static str> {
    let backoff = Backoff { start: Duration::from_secs(1), most: Duration::from_secs(5) };
    Queue::new("test", backoff, &QueueMetrics::register(&mut Registry::default()))
}

/// Runs the queue for that long and tells what was worked on, and when.
async fn worked(
    queue: &Queue<&'static str>,
    workers: usize,
    long: Duration,
    answer: impl Fn(&'static str, usize) -> Next + Send + Sync + 'static,
) -> Vec<(&'static str, u64)> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let (seen, start, stop) = (log.clone(), Instant::now(), CancellationToken::new());
    let answer = Arc::new(answer);
    let run = queue.run(workers, stop.clone(), move |key| {
        let (seen, answer) = (seen.clone(), answer.clone());
        async move {
            let times = {
                let mut seen = seen.lock().unwrap();
                seen.push((key, start.elapsed().as_secs()));
                seen.iter().filter(|(k, _)| *k == key).count()
            };
            answer(key, times)
        }
    });
    tokio::join!(run, async {
        tokio::time::sleep(long).await;
        stop.cancel();
    });
    Arc::try_unwrap(log).unwrap().into_inner().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_added_often_is_worked_on_once() {
    let queue = queue();
    for _ in 0..3 {
        queue.add("a", Priority::Fresh);
        queue.add("a", Priority::Background);
    }
    let seen = worked(&queue, 4, Duration::from_secs(9), |_, _| Next::Done).await;
    assert_eq!(seen, [("a", 0)]);
}

#[tokio::test(start_paused = true)]
async fn fresh_work_goes_before_retries_and_these_before_resyncs() {
    let queue = queue();
    queue.add("resync", Priority::Background);
    queue.add("retry", Priority::Retry);
    queue.add("fresh", Priority::Fresh);
    queue.add("raised", Priority::Background);
    queue.add("raised", Priority::Fresh);
    let seen = worked(&queue, 1, Duration::from_secs(9), |_, _| Next::Done).await;
    let order: Vec<_> = seen.iter().map(|(k, _)| *k).collect();
    assert_eq!(order, ["fresh", "raised", "retry", "resync"]);
}

#[tokio::test(start_paused = true)]
async fn failures_wait_longer_and_longer_and_success_forgets_them() {
    let queue = queue();
    queue.add("a", Priority::Fresh);
    let seen = worked(&queue, 1, Duration::from_secs(30), |_, times| {
        if times < 6 { Next::Retry } else { Next::Done }
    })
    .await;
    let times: Vec<_> = seen.iter().map(|(_, at)| *at).collect();
    assert_eq!(times, [0, 1, 3, 7, 12, 17]);
    queue.add("a", Priority::Fresh);
    let seen =
        worked(
            &queue,
            1,
            Duration::from_secs(3),
            |_, times| {
                if times < 2 { Next::Retry } else { Next::Done }
            },
        )
        .await;
    assert_eq!(seen.iter().map(|(_, at)| *at).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_change_does_not_end_the_delay_of_a_failure_but_now_does() {
    let queue = queue();
    queue.add("a", Priority::Fresh);
    let other = queue.clone();
    let changes = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        other.add("a", Priority::Fresh);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        other.now("a", Priority::Fresh);
    };
    let seen = worked(&queue, 1, Duration::from_millis(2900), |_, _| Next::Retry);
    let (seen, ()) = tokio::join!(seen, changes);
    // At 0, after a second, and at 1.6 s by now().
    assert_eq!(seen, [("a", 0), ("a", 1), ("a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_never_in_two_workers_and_is_looked_at_again_when_it_changed_meanwhile() {
    let queue = queue();
    queue.add("a", Priority::Fresh);
    let (running, most, runs) = <(AtomicUsize, AtomicUsize, AtomicUsize)>::default();
    let counts = Arc::new((running, most, runs));
    let (seen, stop, other) = (counts.clone(), CancellationToken::new(), queue.clone());
    let run = queue.run(8, stop.clone(), move |key| {
        let (seen, other) = (seen.clone(), other.clone());
        async move {
            let now = seen.0.fetch_add(1, Ordering::SeqCst) + 1;
            seen.1.fetch_max(now, Ordering::SeqCst);
            if seen.2.fetch_add(1, Ordering::SeqCst) < 3 {
                other.add(key, Priority::Fresh);
                other.add(key, Priority::Fresh);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            seen.0.fetch_sub(1, Ordering::SeqCst);
            Next::Done
        }
    });
    tokio::join!(run, async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        stop.cancel();
    });
    assert_eq!(counts.1.load(Ordering::SeqCst), 1);
    assert_eq!(counts.2.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_key_comes_at_the_soonest_of_its_times() {
    let queue = queue();
    queue.after("a", Duration::from_secs(8), Priority::Retry);
    queue.after("a", Duration::from_secs(3), Priority::Retry);
    queue.after("a", Duration::from_secs(5), Priority::Retry);
    let seen = worked(&queue, 1, Duration::from_secs(20), |_, _| Next::Done).await;
    assert_eq!(seen, [("a", 3)]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_gives_its_key_back() {
    let queue = queue();
    queue.add("a", Priority::Fresh);
    let seen = worked(&queue, 1, Duration::from_secs(4), |_, times| {
        assert!(times > 1, "the first time");
        Next::Done
    })
    .await;
    assert_eq!(seen, [("a", 0), ("a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_ends_a_cause_while_the_work_fails_of_it_has_the_next_attempt_at_once() {
    let queue = queue();
    queue.add("a", Priority::Fresh);
    let other = queue.clone();
    let seen = worked(&queue, 1, Duration::from_millis(4900), move |key, times| {
        match times {
            1 => other.now(key, Priority::Fresh),
            // A change of the object alone leaves the delay.
            2 => other.add(key, Priority::Fresh),
            _ => {}
        }
        Next::Retry
    })
    .await;
    assert_eq!(seen, [("a", 0), ("a", 0), ("a", 1), ("a", 3)]);
}

#[tokio::test(start_paused = true)]
async fn who_drops_a_queue_that_works_ends_its_workers_where_they_wait() {
    let queue = queue();
    queue.add("a", Priority::Fresh);
    let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
    let acted = Arc::new(AtomicUsize::new(0));
    let seen = acted.clone();
    let run = queue.run(4, stop, move |_| {
        let seen = seen.clone();
        async move {
            // A request before the driver is asked.
            tokio::time::sleep(Duration::from_secs(5)).await;
            seen.fetch_add(1, Ordering::SeqCst);
            Next::Done
        }
    });
    tokio::join!(lost.run_until_cancelled(run), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        lost.cancel();
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(acted.load(Ordering::SeqCst), 0);
}

#[test]
fn queues_of_one_name_are_measured_for_each_driver() {
    let mut registry = Registry::default();
    let metrics = QueueMetrics::register(&mut registry);
    let backoff = Backoff::default();
    let (one, two) = (
        Queue::new("claims", backoff, &metrics.of("one")),
        Queue::new("claims", backoff, &metrics.of("two")),
    );
    one.add("a", Priority::Fresh);
    one.add("b", Priority::Fresh);
    two.add("a", Priority::Fresh);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("workqueue_depth{driver=\"one\",name=\"claims\"} 2"), "{text}");
    assert!(text.contains("workqueue_depth{driver=\"two\",name=\"claims\"} 1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn who_is_beaten_goes_again_soon_and_after_a_few_times_as_after_a_failure() {
    let queue = queue();
    queue.add("a", Priority::Fresh);
    let seen = worked(&queue, 1, Duration::from_secs(9), |_, _| Next::Soon).await;
    let times: Vec<_> = seen.iter().map(|(_, at)| *at).collect();
    // Six times within the first second, then 1, 2 and 4 s later.
    assert_eq!(times, [0, 0, 0, 0, 0, 0, 1, 3, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_success_between_gives_new_patience_and_a_change_ends_the_moment() {
    let queue = queue();
    queue.add("a", Priority::Fresh);
    let again = queue.clone();
    let seen = worked(&queue, 1, Duration::from_secs(2), move |key, times| {
        if times > 40 {
            return Next::Done;
        }
        if times % 4 == 0 {
            again.after(key, Duration::from_millis(1), Priority::Fresh);
            return Next::Done;
        }
        // The watch tells of it: at once.
        again.add(key, Priority::Fresh);
        Next::Soon
    })
    .await;
    assert!(seen.len() >= 40 && seen.iter().take(40).all(|(_, at)| *at == 0), "{seen:?}");
}
