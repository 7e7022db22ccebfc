use super::*;

const SECOND: Duration = Duration::from_secs(1);
const USUAL: Duration = Duration::from_millis(50);

fn addresses(n: usize) -> Arc<Addresses> {
    let limits = Limits {
        breaker_failures: 3,
        breaker_open: 10 * SECOND,
        ..Limits::for_tests()
    };
    let url = |i| TargetUrl::parse(&format!("http://host{i}")).unwrap();
    Addresses::new((0..n).map(url).collect(), &limits)
}

fn call(addresses: &Arc<Addresses>, wish: &Wish) -> Option<Chosen> {
    addresses.choose(wish, Instant::now(), USUAL)
}

fn next(addresses: &Arc<Addresses>) -> Option<usize> {
    call(addresses, &Wish::default()).map(|chosen| chosen.index)
}

fn end(addresses: &Arc<Addresses>, verdict: Verdict) -> bool {
    let mut chosen = call(addresses, &Wish::default()).expect("an address");
    chosen.end(verdict, 1_000)
}

fn fails() -> Verdict {
    Verdict::Fails("refused".into())
}

fn busy(after: Option<u64>) -> Verdict {
    Verdict::Busy(after.map(Duration::from_secs), "busy".into())
}

fn outlook(addresses: &Addresses) -> Outlook {
    addresses.outlook(&Wish::default(), Instant::now())
}

#[tokio::test(start_paused = true)]
async fn calls_keep_to_the_first_address_until_it_fails() {
    let all = addresses(2);
    let held: Vec<_> = (0..5).map(|_| call(&all, &Wish::default())).collect();
    assert!(held.iter().flatten().all(|chosen| chosen.index == 0));
    drop(held);
    assert!(end(&all, fails()));
    assert_eq!(next(&all), Some(1), "one that has just failed comes last");
    let tried = Wish {
        tried: Tried::default().with(1),
        ..Wish::default()
    };
    assert_eq!(call(&all, &tried).map(|c| c.index), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_after_failures_in_a_row_and_closes_after_a_good_trial() {
    let all = addresses(1);
    end(&all, fails());
    end(&all, fails());
    end(&all, Verdict::Works);
    for _ in 0..3 {
        assert_eq!(all.open(), 0);
        end(&all, fails());
    }
    let trial = Instant::now() + 10 * SECOND;
    assert_eq!(outlook(&all), Outlook::Open(trial));
    assert_eq!(all.last_failure(), Some((3, "refused".into())));
    assert_eq!(next(&all), None);
    let asked = Wish {
        trial: true,
        ..Wish::default()
    };
    assert!(
        call(&all, &asked).is_some_and(|c| c.trial),
        "Test connection asks"
    );
    tokio::time::advance(10 * SECOND).await;
    let mut trial = call(&all, &Wish::default()).unwrap();
    assert_eq!(next(&all), None, "only one trial");
    trial.end(fails(), 0);
    assert_eq!(outlook(&all), Outlook::Open(Instant::now() + 10 * SECOND));
    tokio::time::advance(10 * SECOND).await;
    drop(call(&all, &Wish::default()).expect("a trial"));
    end(&all, busy(None));
    assert_eq!(all.open(), 1, "a busy answer closes no breaker");
    tokio::time::advance(10 * SECOND).await;
    end(&all, Verdict::Works);
    assert_eq!(all.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_address_rests_longer_each_time_and_comes_back_slowly() {
    let all = addresses(1);
    for seconds in [1, 2, 4, 8, 10, 10] {
        end(&all, busy(None));
        let until = Instant::now() + seconds * SECOND;
        assert_eq!(outlook(&all), Outlook::From(until));
        tokio::time::advance(seconds * SECOND).await;
    }
    // One call, then two, then more.
    for at_once in [1, 2, 3] {
        let mut held: Vec<_> = (0..at_once)
            .map(|_| call(&all, &Wish::default()).unwrap())
            .collect();
        assert_eq!(outlook(&all), Outlook::Later);
        held[0].end(Verdict::Works, 0);
    }
    for _ in 0..16 {
        end(&all, Verdict::Works);
    }
    let many: Vec<_> = (0..100).map(|_| call(&all, &Wish::default())).collect();
    assert!(many.iter().all(Option::is_some));
    drop(many);
    end(&all, busy(Some(60)));
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + 60 * SECOND));
    tokio::time::advance(60 * SECOND).await;
    end(&all, busy(Some(86_400)));
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + 300 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_refused_together_are_one_rest() {
    let all = addresses(1);
    let calls: Vec<_> = (0..16)
        .map(|_| call(&all, &Wish::default()).unwrap())
        .collect();
    for mut chosen in calls {
        tokio::time::advance(Duration::from_millis(1)).await;
        chosen.end(busy(None), 0);
    }
    let rests = all.resting().0.unwrap();
    assert!(rests <= SECOND, "{rests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_shows_nothing_of_an_address_that_answers_others() {
    let all = addresses(1);
    let mut slow = call(&all, &Wish::default()).unwrap();
    tokio::time::advance(SECOND).await;
    end(&all, Verdict::Works);
    assert!(!slow.end(Verdict::TimedOut("slow".into()), 0));
    let mut slow = call(&all, &Wish::default()).unwrap();
    tokio::time::advance(SECOND).await;
    assert!(slow.end(Verdict::TimedOut("slow".into()), 0));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_has_gone_silent_is_asked_last() {
    let all = addresses(2);
    let _silent = call(&all, &Wish::default()).unwrap();
    tokio::time::advance(Duration::from_millis(400)).await;
    assert_eq!(next(&all), Some(0));
    tokio::time::advance(Duration::from_millis(200)).await;
    assert_eq!(next(&all), Some(1));
}

#[tokio::test(start_paused = true)]
async fn what_an_address_missed_is_asked_of_another() {
    let all = addresses(2);
    let ended = |index: usize, verdict, wall| {
        let only = Wish {
            only: Some(index),
            trial: true,
            ..Wish::default()
        };
        call(&all, &only).unwrap().end(verdict, wall);
    };
    ended(0, Verdict::Works, 1_000);
    ended(1, Verdict::Works, 1_000);
    ended(0, fails(), 2_000);
    ended(0, Verdict::Works, 3_000);
    let about = |start, end| Wish {
        span: Some(TimeRange::new(start, end).unwrap()),
        ..Wish::default()
    };
    let asked = |wish| call(&all, &wish).map(|c| (c.index, c.provisional));
    assert_eq!(asked(about(0, 1_000)), Some((0, false)));
    assert_eq!(asked(about(2_000, 2_500)), Some((1, false)));
    assert_eq!(asked(about(3_000, 4_000)), Some((0, false)));
    // While the other cannot be asked, what it says is not final.
    ended(1, busy(Some(60)), 4_000);
    assert_eq!(asked(about(2_000, 2_500)), Some((0, true)));
}

#[tokio::test(start_paused = true)]
async fn calls_are_as_far_apart_as_asked_but_not_for_ever() {
    let all = addresses(1);
    let chosen = call(&all, &Wish::default()).unwrap();
    chosen.advised(1, Duration::from_secs(86_400), Duration::from_secs(86_400));
    drop(chosen);
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + 60 * SECOND));
    tokio::time::advance(60 * SECOND).await;
    for _ in 0..4 {
        drop(call(&all, &Wish::default()).expect("its turn"));
        assert_eq!(next(&all), None);
        tokio::time::advance(60 * SECOND).await;
    }
    // After five minutes the advice is forgotten.
    assert_eq!(outlook(&all), Outlook::Ready);
    let chosen = call(&all, &Wish::default()).unwrap();
    chosen.advised(0, SECOND, 7 * SECOND);
    drop(chosen);
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + 7 * SECOND));
}
