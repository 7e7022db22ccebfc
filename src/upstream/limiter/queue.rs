//! Queue of the calls that wait, and their order.
//!
//! Each caller has one line, and the lines take turns: a dashboard of 500 panels delays the poll of
//! a check by one call, not by 500. Within a line the lanes take turns, so that a long range of
//! many calls delays no other by more than one.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Caller;

/// The calls that wait. An entry of type `T` is handed back when its turn comes.
pub(super) struct Queue<T> {
    /// One line for each caller; the first is next, and goes to the end then.
    lines: VecDeque<Line<T>>,
    waiting: usize,
    last_ticket: u64,
}

/// A call that waits.
pub(super) struct Waiting<T> {
    ticket: u64,
    /// The time after which its answer is of no use.
    pub(super) deadline: Instant,
    /// The payload.
    pub(super) item: T,
}

/// The calls of one caller; the first lane is next, and goes to the end then.
struct Line<T> {
    caller: Caller,
    lanes: VecDeque<Lane<T>>,
    waiting: usize,
    pace: Pace,
}

/// The pace of a line, estimated from its past: how many callers with few calls will come, which
/// take turns between those of a long line, is unknown.
#[derive(Clone, Copy, Default)]
struct Pace {
    /// Seconds between two turns, of the last `PACE_WEIGHT` or so.
    seconds: f64,
    /// Intervals that were taken in, up to `PACE_WEIGHT`.
    turns: f64,
    last: Option<Instant>,
}

const PACE_WEIGHT: f64 = 32.0;

/// An interval counts as at most this many times the usual one: a pause is not part of the pace.
const PACE_CLIP: f64 = 4.0;

impl Pace {
    /// Takes in that it was the line's turn at `now`; lines that move alike would each move every
    /// `even` seconds.
    fn turn(&mut self, now: Instant, even: f64) {
        if let Some(last) = self.last.replace(now) {
            let most = PACE_CLIP * self.seconds.max(even);
            let interval = now.duration_since(last).as_secs_f64().min(most);
            self.turns = (self.turns + 1.0).min(PACE_WEIGHT);
            self.seconds += (interval - self.seconds) / self.turns;
        }
    }

    /// Returns the time of so many turns.
    fn wait(&self, turns: usize) -> Duration {
        Duration::try_from_secs_f64(self.seconds * turns as f64).unwrap_or(Duration::MAX)
    }

    /// Returns the time from `now` until the turn that comes after `ahead` others.
    fn wait_from(&self, now: Instant, ahead: usize) -> Duration {
        let passed = self
            .last
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let until_next = self.wait(1).saturating_sub(passed);
        self.wait(ahead).saturating_add(until_next)
    }
}

/// The number of turns before a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    /// Calls that would be made before it if no others came.
    pub(super) calls: usize,
    /// The estimated wait at the pace of its line.
    pub(super) by_pace: Duration,
}

/// The calls for data of one lane, by its number.
struct Lane<T> {
    number: u64,
    waiting: VecDeque<Waiting<T>>,
}

/// The place of a call in the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The caller whose line it is in.
    pub(super) caller: Caller,
    /// The lane that it is for.
    pub(super) lane: u64,
    /// Set if it continues the work of an earlier call: then it is the next of its line.
    pub(super) continues: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            lines: VecDeque::new(),
            waiting: 0,
            last_ticket: 0,
        }
    }
}

impl<T> Queue<T> {
    /// Returns the number of calls that wait in all lines.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Returns the number of calls that have waited so far.
    #[cfg(test)]
    pub(super) fn entered(&self) -> u64 {
        self.last_ticket
    }

    /// Returns the turns before a call that comes to `place` at `now`: its turn comes when each lane of
    /// its line has had as many as its own lane, and each other line has moved as often.
    pub(super) fn ahead(&self, now: Instant, place: Place) -> Ahead {
        let line = self.lines.iter().find(|l| l.caller == place.caller);
        let own = line
            .filter(|_| !place.continues)
            .map_or(0, |line| line.ahead_of(place.lane));
        let others = self.lines.iter();
        let others = others.filter(|l| l.caller.is_some() && l.caller != place.caller);
        let others = others.map(|l| match place.caller {
            Some(_) => l.waiting.min(own),
            None => l.waiting,
        });
        Ahead {
            calls: own + others.sum::<usize>(),
            by_pace: line.map_or(Duration::ZERO, |line| line.pace.wait_from(now, own)),
        }
    }

    /// Puts `item` into the queue, and returns the ticket with which it can leave.
    pub(super) fn enter(&mut self, place: Place, deadline: Instant, item: T) -> u64 {
        self.last_ticket += 1;
        self.waiting += 1;
        let entry = Waiting {
            ticket: self.last_ticket,
            deadline,
            item,
        };
        match self.lines.iter_mut().find(|l| l.caller == place.caller) {
            Some(line) => line.enter(place, entry),
            None => {
                let mut line = Line {
                    caller: place.caller,
                    lanes: VecDeque::new(),
                    waiting: 0,
                    pace: Pace::default(),
                };
                line.enter(place, entry);
                self.lines.push_back(line);
            }
        }
        self.last_ticket
    }

    /// Takes out the call with `ticket`, if it still waits.
    pub(super) fn leave(&mut self, caller: Caller, ticket: u64) -> Option<Waiting<T>> {
        let at = self.lines.iter().position(|l| l.caller == caller)?;
        let line = self.lines.get_mut(at)?;
        let left = line.leave(ticket)?;
        self.waiting -= 1;
        if line.lanes.is_empty() {
            self.lines.remove(at);
        }
        Some(left)
    }

    /// Takes out the call whose turn it is at `now`, of those that are `ready`, where a call can be
    /// made every `period` seconds. Calls of Heliostat itself wait until no client's does.
    pub(super) fn next(
        &mut self,
        now: Instant,
        period: f64,
        mut ready: impl FnMut(&T) -> bool,
    ) -> Option<(Caller, Waiting<T>)> {
        let clients = self.lines.iter().any(|l| l.caller.is_some());
        let mut lines = self.lines.iter().enumerate();
        let (at, lane_at) = lines.find_map(|(at, line)| {
            if clients && line.caller.is_none() {
                return None;
            }
            let mut first = |lane: &Lane<T>| lane.waiting.front().is_some_and(|w| ready(&w.item));
            Some((at, line.lanes.iter().position(&mut first)?))
        })?;
        let lines = self.lines.len();
        let mut line = self.lines.remove(at)?;
        let mut lane = line.lanes.remove(lane_at)?;
        let next = lane.waiting.pop_front()?;
        let caller = line.caller;
        line.pace.turn(now, period * lines as f64);
        self.waiting -= 1;
        line.waiting -= 1;
        if !lane.waiting.is_empty() {
            line.lanes.push_back(lane);
        }
        if !line.lanes.is_empty() {
            self.lines.push_back(line);
        }
        Some((caller, next))
    }

    /// Takes out the calls that `pick` picks.
    pub(super) fn take_if(&mut self, mut pick: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut picked = Vec::new();
        for line in &mut self.lines {
            for lane in &mut line.lanes {
                if !lane.waiting.iter().any(|w| pick(&w.item)) {
                    continue;
                }
                for waiting in std::mem::take(&mut lane.waiting) {
                    match pick(&waiting.item) {
                        true => picked.push(waiting.item),
                        false => lane.waiting.push_back(waiting),
                    }
                }
            }
            line.lanes.retain(|lane| !lane.waiting.is_empty());
            line.waiting = line.lanes.iter().map(|lane| lane.waiting.len()).sum();
        }
        self.lines.retain(|line| !line.lanes.is_empty());
        self.waiting -= picked.len();
        picked
    }

    /// Returns ticket and deadline of the first call in the line of `caller`, and the time that it
    /// will wait.
    pub(super) fn first_of(&self, caller: Caller) -> Option<(u64, Instant, Duration)> {
        let line = self.lines.iter().find(|l| l.caller == caller)?;
        let first = line.lanes.front()?.waiting.front()?;
        Some((first.ticket, first.deadline, line.pace.wait(1)))
    }

    /// Returns ticket and deadline of the last call in the line of `caller`, and the time that it
    /// will wait.
    pub(super) fn last_of(&self, caller: Caller) -> Option<(u64, Instant, Duration)> {
        let line = self.lines.iter().find(|l| l.caller == caller)?;
        let newest = line.newest()?;
        let wait = line.pace.wait(line.waiting);
        Some((newest.ticket, newest.deadline, wait))
    }

    /// Returns caller, ticket and deadline of the call whose turn comes last: one of Heliostat
    /// itself, or the newest of the longest line.
    pub(super) fn last(&self) -> Option<(Caller, u64, Instant)> {
        let longest = |l: &&Line<T>| (l.caller.is_none(), l.waiting);
        let line = self.lines.iter().max_by_key(longest)?;
        let newest = line.newest()?;
        Some((line.caller, newest.ticket, newest.deadline))
    }

    /// Returns whether another line is more than twice as long as that of `caller`; a line of Heliostat
    /// itself is for any client.
    pub(super) fn has_line_twice_as_long_as(&self, caller: Caller) -> bool {
        let own = self.lines.iter().find(|l| l.caller == caller);
        let own = own.map_or(0, |l| l.waiting);
        let mut others = self.lines.iter().filter(|l| l.caller != caller);
        others.any(|l| l.waiting > 2 * own || (l.caller.is_none() && caller.is_some()))
    }

    /// Returns whether `caller` would have fewer calls in its line, with one more, than the caller
    /// with most: then the other has to give way.
    pub(super) fn has_longer_line_than(&self, caller: Caller) -> bool {
        let own = self.lines.iter().find(|l| l.caller == caller);
        let own = own.map_or(0, |l| l.waiting);
        let others = self.lines.iter();
        others
            .filter(|l| l.caller != caller)
            .any(|l| l.waiting > own + 1 || (l.caller.is_none() && caller.is_some()))
    }
}

impl<T> Line<T> {
    fn newest(&self) -> Option<&Waiting<T>> {
        let newest = self.lanes.iter().filter_map(|lane| lane.waiting.back());
        newest.max_by_key(|w| w.ticket)
    }

    fn ahead_of(&self, lane: u64) -> usize {
        let own = self.lanes.iter().find(|l| l.number == lane);
        let own = own.map_or(0, |l| l.waiting.len());
        let others = self.lanes.iter().filter(|l| l.number != lane);
        own + others.map(|l| l.waiting.len().min(own + 1)).sum::<usize>()
    }

    fn enter(&mut self, place: Place, entry: Waiting<T>) {
        self.waiting += 1;
        let known = self.lanes.iter_mut().find(|l| l.number == place.lane);
        match known {
            Some(lane) if !place.continues => lane.waiting.push_back(entry),
            _ => {
                let lane = Lane {
                    number: place.lane,
                    waiting: VecDeque::from([entry]),
                };
                match place.continues {
                    true => self.lanes.push_front(lane),
                    false => self.lanes.push_back(lane),
                }
            }
        }
    }

    fn leave(&mut self, ticket: u64) -> Option<Waiting<T>> {
        let find = |lane: &Lane<T>| lane.waiting.iter().position(|w| w.ticket == ticket);
        let mut lanes = self.lanes.iter().enumerate();
        let (lane_at, at) = lanes.find_map(|(i, lane)| Some((i, find(lane)?)))?;
        let lane = self.lanes.get_mut(lane_at)?;
        let left = lane.waiting.remove(at)?;
        self.waiting -= 1;
        if lane.waiting.is_empty() {
            self.lanes.remove(lane_at);
        }
        Some(left)
    }
}
