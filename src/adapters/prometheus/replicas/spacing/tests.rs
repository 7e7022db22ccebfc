use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const INTERVAL: Millis = 15_000;

fn step(millis: Millis) -> Step {
    Step::new(millis).unwrap()
}

fn samples(start: Millis, end: Millis) -> Spacing {
    let (view, interval) = (TimeRange::clamped(start, end), step(INTERVAL));
    Spacing::Samples { view, interval }
}

/// Times in seconds, as milliseconds.
fn seconds(times: &[Millis]) -> Vec<Millis> {
    times.iter().map(|t| t * 1000).collect()
}

fn every(distance: Millis, from: Millis, to: Millis) -> Vec<Millis> {
    (from..to).step_by(distance as usize).collect()
}

/// Returns the times that both have together.
fn union(spacing: &Spacing, mine: &[Millis], theirs: &[Millis]) -> Vec<Millis> {
    let taken = spacing.taken(mine, theirs);
    let taken = taken.into_iter().flatten().map(|at| theirs[at]);
    let all: BTreeSet<Millis> = mine.iter().copied().chain(taken).collect();
    all.into_iter().collect()
}

#[test]
fn values_are_lacking_at_evaluation_times_up_to_now() {
    let all = Spacing::steps(10, 50, step(10));
    assert!(!all.has_gap(&[10, 20, 30, 40, 50]));
    for times in [&[10, 20, 40, 50][..], &[20, 30, 40, 50], &[10, 20], &[]] {
        assert!(all.has_gap(times), "{times:?}");
    }
    assert!(!all.until(34).has_gap(&[10, 20, 30]));
    assert!(!all.until(9).has_gap(&[]));
    assert_eq!(
        union(&all, &[10, 30], &[5, 10, 20, 40, 60]),
        [10, 20, 30, 40]
    );
}

#[test]
fn a_bucket_beside_a_gap_is_taken_where_it_is_whole() {
    let all = Spacing::buckets(0, 60, step(10));
    let mine = [0, 10, 40, 50, 60];
    let picked = |theirs: &[Millis]| -> Vec<Millis> {
        let taken = all.taken(&mine, theirs).into_iter().flatten();
        taken.map(|at| theirs[at]).collect()
    };
    assert_eq!(picked(&[0, 10, 20, 30, 40, 50, 60]), [10, 20, 30, 40]);
    // What is beside a gap of both is as good in one as in the other.
    assert_eq!(picked(&[0, 10, 20, 60]), [10, 20]);
}

#[test]
fn a_gap_of_stored_samples_is_longer_than_two_and_a_half_of_their_distances() {
    let all = samples(0, 120_000);
    assert!(!all.has_gap(&every(INTERVAL, 5_000, 120_000)));
    assert!(
        !all.has_gap(&seconds(&[15, 30, 60, 75, 105])),
        "one is missing"
    );
    assert!(
        all.has_gap(&seconds(&[15, 30, 75, 90, 105])),
        "two are missing"
    );
    assert!(
        all.has_gap(&seconds(&[45, 60, 75, 90, 105])),
        "at the start"
    );
    assert!(all.has_gap(&seconds(&[15, 30, 45, 60, 75])), "at the end");
    assert!(!all.until(100_000).has_gap(&seconds(&[15, 30, 45, 60, 75])));
    assert!(all.has_gap(&[]));
    // A target that is scraped more rarely.
    assert!(!samples(0, 600_000).has_gap(&every(60_000, 10_000, 600_000)));
}

#[test]
fn samples_of_two_servers_are_never_side_by_side() {
    let all = samples(0, 300_000);
    let (mine, theirs) = (
        every(INTERVAL, 1_000, 300_000),
        every(INTERVAL, 7_000, 300_000),
    );
    assert_eq!(union(&all, &mine, &theirs), mine);
    // Scraped once in a minute or five, of which nothing is known here.
    for rarely in [60_000, 300_000] {
        let all = samples(0, 700_000);
        let (mine, theirs) = (every(rarely, 0, 700_000), every(rarely, 30_000, 700_000));
        assert_eq!(union(&all, &mine, &theirs), mine);
    }
    // None of a window that one of them has a sample in by chance.
    assert!(union(&samples(0, 120_000), &[], &[100_000]).is_empty());
}

#[test]
fn a_hole_is_filled_up_to_half_a_distance_from_its_edges() {
    let all = samples(0, 300_000);
    let mine: Vec<_> = every(INTERVAL, 0, 300_000);
    let holed: Vec<_> = mine
        .iter()
        .copied()
        .filter(|t| !(100_000..200_000).contains(t))
        .collect();
    for shift in 0..INTERVAL / 1_000 {
        let theirs = every(INTERVAL, shift * 1_000, 300_000);
        let all = union(&all, &holed, &theirs);
        assert!(all.len().abs_diff(mine.len()) <= 1, "{shift}: {all:?}");
        for pair in all.windows(2) {
            let apart = pair[1] - pair[0];
            assert!(
                (INTERVAL / 2..=INTERVAL * 2).contains(&apart),
                "{shift}: {pair:?}"
            );
        }
    }
}

proptest! {
    /// However a range is cut into fetches, the union is that of one fetch of all.
    #[test]
    fn what_is_filled_does_not_depend_on_where_a_fetch_begins(
        holes in prop::collection::vec((0i64..600, 0i64..200), 0..3),
        other_holes in prop::collection::vec((0i64..600, 0i64..200), 0..3),
        jitter in prop::collection::vec(0i64..2_000, 80),
        shift in 0i64..15_000,
        cuts in prop::collection::btree_set(1i64..600, 0..4),
    ) {
        let scraped = |shift: i64, holes: &[(i64, i64)]| -> Vec<i64> {
            let at = |(n, j): (usize, &i64)| n as i64 * INTERVAL + shift + j - 300_000;
            let down = |t: &i64| {
                holes.iter().any(|(from, len)| (from * 1000..(from + len) * 1000).contains(t))
            };
            jitter.iter().enumerate().map(at).filter(|t| !down(t)).collect()
        };
        let (mine, theirs) = (scraped(0, &holes), scraped(shift, &other_holes));
        let seen = |times: &[i64], spacing: &Spacing| -> Vec<i64> {
            let Spacing::Samples { view, .. } = spacing else { unreachable!() };
            times.iter().copied().filter(|t| view.holds(*t)).collect()
        };
        let fetched = |from: i64, to: i64| -> Vec<i64> {
            let range = TimeRange::clamped(from * 1000, to * 1000);
            let spacing = Spacing::samples(range, step(INTERVAL));
            let (mine, theirs) = (seen(&mine, &spacing), seen(&theirs, &spacing));
            let all = match spacing.has_gap(&mine) {
                true => union(&spacing, &mine, &theirs),
                false => mine,
            };
            all.into_iter().filter(|t| range.holds(*t)).collect()
        };
        let whole = fetched(0, 600);
        let edges: Vec<i64> = [0].into_iter().chain(cuts).chain([600]).collect();
        let parts: Vec<i64> = edges.windows(2).flat_map(|e| fetched(e[0], e[1])).collect();
        // A sample that has no other near it shows no gap, where it is all that is seen.
        let company = |t: &i64| {
            let near = |other: &&i64| *other != t && (*other - t).abs() <= 2 * INTERVAL;
            mine.iter().chain(&theirs).any(|other| near(&other))
        };
        let parts: Vec<i64> = parts.into_iter().filter(company).collect();
        let in_company: Vec<i64> = whole.iter().copied().filter(company).collect();
        prop_assert_eq!(&parts, &in_company);
        // Whatever is known of one replica stays.
        prop_assert!(mine.iter().filter(|t| (0..600_000).contains(*t)).all(|t| whole.contains(t)));
        for pair in whole.windows(2).filter(|p| !mine.contains(&p[0]) || !mine.contains(&p[1])) {
            prop_assert!(pair[1] - pair[0] >= INTERVAL / 2 - 2_000, "{:?}", pair);
        }
    }
}
