//! The steps at which an expression has been requested, so that coarse ones can be served from
//! finer ones.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::lane::Lane;
use crate::model::{Expression, Millis, Step};

/// Most expressions that are remembered; beyond it the memory is emptied and learnt anew.
const EXPRESSIONS: usize = 4096;

/// Most steps of an expression that are remembered, the last ones requested.
const STEPS: usize = 8;

/// The steps and phases that expressions were fetched at, by a hash of upstream and expression.
#[derive(Default)]
pub(super) struct KnownSteps {
    // A plain mutex: it is held for a look-up and never across an await.
    known: Mutex<HashMap<u64, Vec<(Step, Millis)>>>,
}

impl KnownSteps {
    /// Remembers that `expression`, which is that of `lane`, has been fetched.
    pub(super) fn add(&self, lane: &Lane, expression: &Expression) {
        let grid = (expression.step, expression.phase);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= EXPRESSIONS {
            known.clear();
        }
        let grids = known.entry(lane.hash_without_step()).or_default();
        grids.retain(|g| *g != grid);
        grids.push(grid);
        if grids.len() > STEPS {
            grids.remove(0);
        }
    }

    /// Returns the lanes of the expression of `lane` that have a value at `time`, the last
    /// requested first.
    pub(super) fn meeting(&self, lane: &Lane, expression: &Expression, time: Millis) -> Vec<Lane> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(grids) = known.get(&lane.hash_without_step()) else {
            return Vec::new();
        };
        let meets = |(step, phase): &&(Step, Millis)| step.floor(time - phase) == time - phase;
        let grids: Vec<_> = grids.iter().rev().filter(meets).copied().collect();
        drop(known);
        let lane = |(step, phase)| {
            let expression = Expression {
                step,
                phase,
                ..expression.clone()
            };
            Lane::of_expression(lane.upstream.clone(), expression)
        };
        grids.into_iter().map(lane).collect()
    }

    /// Returns the lanes of the same expression with finer steps whose times include all of its
    /// own, the coarsest first: they have the least to leave out.
    pub(super) fn finer_than(&self, lane: &Lane, expression: &Expression) -> Vec<Lane> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(grids) = known.get(&lane.hash_without_step()) else {
            return Vec::new();
        };
        let meets = |(step, phase): &&(Step, Millis)| {
            step < &expression.step
                && expression.step.millis() % step.millis() == 0
                && expression.phase % step.millis() == *phase
        };
        let mut finer: Vec<_> = grids.iter().filter(meets).copied().collect();
        drop(known);
        finer.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
        let lane = |(step, phase)| {
            let expression = Expression {
                step,
                phase,
                ..expression.clone()
            };
            Lane::of_expression(lane.upstream.clone(), expression)
        };
        finer.into_iter().map(lane).collect()
    }
}
