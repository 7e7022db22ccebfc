use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;
use crate::clock::Clock;
use crate::model::Millis;
use crate::store::joint::{JointAsk, JointLimits, Permits};
use crate::store::standing::{AWAY, ShareVerdict};
use crate::upstream::addresses::Addresses;
use crate::upstream::limiter::{Ask, Limiter};

/// All replicas may make so many calls a second, and as many at once.
const RATE: u32 = 40;

const SECOND: Duration = Duration::from_secs(1);

/// A monotonic clock that goes with the runtime.
#[derive(Debug)]
struct Running(Instant);

impl Clock for Running {
    fn now(&self) -> Millis {
        0
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A replica whose level the test plays.
struct Replica {
    limits: Arc<JointLimits>,
    limiter: Arc<Limiter>,
    began: Instant,
    /// Permits that the level has left.
    left: Arc<AtomicU32>,
    /// Number of times that it was asked.
    asked: Arc<AtomicU32>,
}

/// The time that a request for permits takes.
const TRIP: Duration = Duration::from_millis(50);

impl Replica {
    fn new(without: f64) -> Self {
        let began = Instant::now();
        let clock = Arc::new(Running(began));
        let (limits, mut asks) = JointLimits::new(7, Duration::from_secs(300), without, clock);
        let (left, asked) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (pool, count) = (left.clone(), asked.clone());
        tokio::spawn(async move {
            while let Some(JointAsk::Permits(ask)) = asks.recv().await {
                count.fetch_add(1, Relaxed);
                tokio::time::sleep(TRIP).await;
                let granted = ask.want.min(pool.load(Relaxed));
                pool.fetch_sub(granted, Relaxed);
                let wait = Duration::from_millis(100);
                let _ = ask.answer.send(Ok(Permits { granted, wait }));
            }
        });
        let limit = limits.limit("way", f64::from(RATE), RATE);
        let mine = Limits {
            per_second: f64::from(RATE),
            burst: RATE,
            max_concurrency: 100,
            queue: 100,
            ..Limits::for_tests()
        };
        Self {
            limiter: Arc::new(Limiter::new(&mine, Some(limit))),
            limits,
            began,
            left,
            asked,
        }
    }

    /// Answers a beat that was sent just now: this replica has that share of four.
    fn reply(&self, share: u32) {
        let verdict = ShareVerdict {
            time: 1,
            epoch: 1,
            share,
            live: 4,
        };
        assert!(self.limits.replied(verdict, &[], self.began.elapsed()));
    }

    /// Returns whether a call may be made within `time`.
    async fn calls_within(&self, time: Duration) -> bool {
        let url = crate::model::TargetUrl::parse("http://host").unwrap();
        let addresses = Addresses::new(vec![url], &Limits::for_tests());
        let later = Instant::now() + Duration::from_secs(3600);
        let admitted = self.limiter.admit(Ask::new(None, later, &addresses));
        let admitted = tokio::time::timeout(time, admitted).await;
        matches!(admitted, Ok(Ok(_)))
    }

    /// Returns the number of calls that are made within `time` if there is always one that waits.
    async fn most_within(&self, time: Duration) -> u32 {
        let end = Instant::now() + time;
        let mut calls = 0;
        while Instant::now() < end {
            match self.calls_within(end - Instant::now()).await {
                true => calls += 1,
                // It was refused, or it is over.
                false => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        calls
    }
}

#[tokio::test(start_paused = true)]
async fn permits_that_are_not_used_at_once_lapse() {
    let replica = Arc::new(Replica::new(0.0));
    replica.reply(WHOLE / 4);
    replica.left.store(5, Relaxed);
    let call = |time| {
        let replica = replica.clone();
        tokio::spawn(async move { replica.calls_within(time).await })
    };
    // Of five that wait, four give up before the permits are there.
    let calls: Vec<_> = [SECOND, TRIP / 2, TRIP / 2, TRIP / 2, TRIP / 2]
        .map(call)
        .into();
    let mut made = 0;
    for call in calls {
        made += u32::from(call.await.unwrap());
    }
    assert_eq!(made, 1);
    assert_eq!(replica.left.load(Relaxed), 0, "all were granted");
    let asked = replica.asked.load(Relaxed);
    assert!(replica.calls_within(Duration::from_millis(1)).await);
    assert_eq!(replica.asked.load(Relaxed), asked, "one that is left");
    tokio::time::sleep(PERMITS_LAST).await;
    assert!(
        !replica.calls_within(TRIP / 2).await,
        "three are left of old"
    );
    replica.left.store(1, Relaxed);
    assert!(replica.calls_within(SECOND).await);
}

#[tokio::test(start_paused = true)]
async fn a_replica_alone_keeps_to_the_share_that_it_was_told_last_and_begins_empty() {
    let replica = Replica::new(0.0);
    // Of shares of 40 calls a second: the calls of the first second, and of four more.
    let shares = [
        (WHOLE / 4, 10, 40),
        (WHOLE / 20, 2, 8),
        (WHOLE / 2, 20, 80),
        // Less than a call at once.
        (WHOLE / 100, 0, 0),
        (0, 0, 0),
    ];
    for (share, first, more) in shares {
        replica.reply(share);
        let together = replica.most_within(AWAY).await;
        assert_eq!(together, 0, "the level grants none");
        let one = replica.most_within(SECOND).await;
        assert!((first * 9 / 10..=first).contains(&one), "{share}: {one}");
        let four = replica.most_within(4 * SECOND).await;
        assert!(
            (more * 9 / 10..=more + 1).contains(&four),
            "{share}: {four}"
        );
    }
    // It is back, and goes by the level's permits alone.
    replica.reply(WHOLE);
    assert_eq!(replica.most_within(SECOND).await, 0);
    replica.left.store(7, Relaxed);
    assert!(replica.most_within(SECOND / 2).await <= 7);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_never_met_its_level_makes_as_many_calls_as_it_is_told() {
    let replica = Replica::new(0.0);
    assert_eq!(replica.most_within(10 * SECOND).await, 0);
    let replica = Replica::new(5.0);
    assert_eq!(replica.most_within(AWAY).await, 0, "it may meet it yet");
    let made = replica.most_within(10 * SECOND).await;
    assert!((45..=51).contains(&made), "{made}");
    // Met, and with no share: none.
    replica.reply(0);
    assert_eq!(replica.most_within(10 * SECOND).await, 0);
}
