//! Data of lanes as the content of values, and back. Series are stored as the text of an answer that
//! holds them, so that what reads answers reads them too.

use bytes::Bytes;

use crate::adapters::{Annotations, Data, LabeledSeries};
use crate::engine::chunk::Piece;
use crate::engine::lane::{Lane, Subject};
use crate::engine::range::matrix_body;
use crate::model::Millis;
use crate::store::page::{BlockContent, KnownSpan, Unreadable};
use crate::wire::encoding::Encoding;
use crate::wire::prometheus::read_matrix;

/// The content of a value that holds the data of `piece`.
pub(super) fn content(piece: &Piece) -> Option<BlockContent> {
    let hull = piece.hull()?;
    Some(match &piece.data {
        Data::Points(points) => BlockContent::Points(points.clone()),
        Data::Matrix(matrix) => {
            let body = matrix_body(|| std::iter::once(matrix), &hull, Encoding::Identity);
            BlockContent::Text(Encoding::Identity.join(body).concat())
        }
    })
}

/// The data that a value of `lane` holds, all of it within `parts`.
pub(super) fn data(
    lane: &Lane,
    content: BlockContent,
    parts: &[KnownSpan],
) -> Result<Data, Unreadable> {
    let text = match (lane.subject(), content) {
        (Subject::Expression(_), BlockContent::Text(text)) => Bytes::from(text),
        (Subject::Metric { .. } | Subject::Summaries { .. }, BlockContent::Points(points)) => {
            return Ok(Data::Points(points));
        }
        _ => return Err(Unreadable::Text),
    };
    let most = lane.upstream.reading.range_limits.series;
    let matrix = read_matrix(&text, most).map_err(|_| Unreadable::Text)?;
    let inside = |time: &Millis| {
        let at = parts.partition_point(|part| part.range.end() <= *time);
        parts.get(at).is_some_and(|part| part.range.holds(*time))
    };
    for series in &matrix.series {
        for track in [&series.values, &series.histograms] {
            if !track.times().iter().all(inside) {
                return Err(Unreadable::Text);
            }
        }
    }
    Ok(Data::Matrix(LabeledSeries {
        annotations: Annotations::of(&matrix.extras),
        series: matrix.series,
    }))
}
