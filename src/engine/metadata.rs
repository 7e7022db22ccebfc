//! Names and values of fields. A list that an upstream returns whole is cached as a list; the
//! answer to each prefix, offset and limit is made from it once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use super::encoded::{CachedResponse, EncodedResponse};
use super::explain::Explanation;
use super::lane::forwarded;
use super::whole::{
    CachePolicy, Content, WholeAnswer, WholeEntry, WholeFetch, WholeIdentity, WholeKey, WholeQuery,
};
use super::{Engine, RequestContext};
use crate::adapters::{Catalogue, CatalogueScope, Forwarded};
use crate::model::{
    Details, Error, Field, FieldNames, FieldNamesQuery, FieldValue, FieldValues, FieldValuesQuery,
    Kind, MAX_TIME, Millis, RawResponse, Scope, Step, heap_block,
};
use crate::upstream::Upstream;
use crate::wire::mirror::response::{write_field_names, write_field_values};

/// Pages of longer lists are made off the threads that serve connections.
const PAGE_INLINE: usize = 2000;

/// A query for names or values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum MetadataQuery {
    Names(FieldNamesQuery),
    Values(FieldValuesQuery),
}

impl MetadataQuery {
    fn scope(&mut self) -> &mut Scope {
        match self {
            Self::Names(query) => &mut query.scope,
            Self::Values(query) => &mut query.scope,
        }
    }

    /// Returns the query for the whole list of which its answer is a page.
    fn unpaged(&self) -> Self {
        let mut all = self.clone();
        all.scope().limit = None;
        if let Self::Values(query) = &mut all {
            query.prefix.clear();
            query.prefix.shrink_to_fit();
            query.offset = 0;
        }
        all
    }

    /// Returns the bytes that it holds on the heap, about.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Names(query) => query.scope.selector.heap_bytes(),
            Self::Values(query) => {
                let texts = [&query.field.name, &query.prefix].into_iter();
                let texts: usize = texts.map(|text| heap_block(text.capacity())).sum();
                query.scope.selector.heap_bytes() + texts
            }
        }
    }
}

/// A list of an upstream.
#[derive(Debug)]
pub(super) enum List {
    /// Names.
    Names(FieldNames),
    /// Values.
    Values(FieldValues),
    /// The metrics that both are cut from.
    Catalogue(Catalogue),
}

impl List {
    fn len(&self) -> usize {
        match self {
            Self::Names(names) => names.fields.len(),
            Self::Values(values) => values.values.len(),
            Self::Catalogue(catalogue) => catalogue.len(),
        }
    }

    fn is_partial(&self) -> bool {
        match self {
            Self::Names(names) => names.partial,
            Self::Values(values) => values.partial,
            Self::Catalogue(catalogue) => catalogue.is_partial(),
        }
    }

    /// Returns the part of a catalogue that `query` is about.
    fn cut(
        catalogue: &Catalogue,
        query: &MetadataQuery,
        upstream: &Upstream,
    ) -> Result<Self, Error> {
        let adapter = &upstream.adapter;
        Ok(match query {
            MetadataQuery::Names(query) => Self::Names(adapter.names_in(catalogue, query)?),
            MetadataQuery::Values(query) => Self::Values(adapter.values_in(catalogue, query)?),
        })
    }

    /// Returns the bytes that it holds on the heap, about.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Names(FieldNames { fields, partial: _ }) => {
                let names: usize = fields.iter().map(|f| heap_block(f.name.capacity())).sum();
                heap_block(fields.capacity() * size_of::<Field>()) + names
            }
            Self::Values(values) => {
                let text = |v: &FieldValue| heap_block(v.text().len());
                let texts: usize = values.values.iter().map(text).sum();
                heap_block(values.values.capacity() * size_of::<FieldValue>()) + texts
            }
            Self::Catalogue(catalogue) => catalogue.heap_bytes(),
        }
    }

    /// Writes the answer to `query`, which is all of the list if the upstream has applied prefix,
    /// offset and limit (`paged`).
    fn answer(&self, query: &MetadataQuery, paged: bool) -> Vec<u8> {
        let limit = |scope: &Scope| scope.limit.map_or(usize::MAX, |limit| limit as usize);
        match (self, query) {
            (Self::Names(FieldNames { fields, partial }), MetadataQuery::Names(query)) => {
                let shown = fields.get(..limit(&query.scope));
                let partial = *partial || shown.is_some_and(|shown| shown.len() < fields.len());
                write_field_names(shown.unwrap_or(fields), partial)
            }
            (Self::Values(all), MetadataQuery::Values(query)) if !paged => {
                let texts: Vec<&str> = all.values.iter().map(FieldValue::text).collect();
                let (offset, limit) = (query.offset as usize, limit(&query.scope));
                let mut page = FieldValues::page(&texts, &query.prefix, offset, limit);
                page.partial |= all.partial;
                write_field_values(&page)
            }
            (Self::Values(all), _) => write_field_values(all),
            (Self::Names(names), _) => write_field_names(&names.fields, names.partial),
            // What is cut from it is written.
            (Self::Catalogue(_), _) => Vec::new(),
        }
    }
}

fn response(body: Vec<u8>) -> Content {
    let kind = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Content::Response(EncodedResponse::new(Arc::new(RawResponse {
        status: StatusCode::OK,
        headers: vec![kind],
        body: Bytes::from(body.into_boxed_slice()),
    })))
}

impl Engine {
    /// Answers a query for the names of fields, as a response of the mirror API.
    pub async fn field_names(
        self: &Arc<Self>,
        details: &Details,
        query: &FieldNamesQuery,
        context: &RequestContext,
    ) -> Result<CachedResponse, Error> {
        let query = MetadataQuery::Names(query.clone());
        self.metadata(details, query, context).await
    }

    /// Answers a query for the values of a field, as a response of the mirror API.
    pub async fn field_values(
        self: &Arc<Self>,
        details: &Details,
        query: &FieldValuesQuery,
        context: &RequestContext,
    ) -> Result<CachedResponse, Error> {
        let query = MetadataQuery::Values(query.clone());
        self.metadata(details, query, context).await
    }

    async fn metadata(
        self: &Arc<Self>,
        details: &Details,
        mut query: MetadataQuery,
        context: &RequestContext,
    ) -> Result<CachedResponse, Error> {
        let upstream = self.registry.pick(details)?;
        let details = forwarded(&upstream, details);
        self.normalize(query.scope(), &upstream);
        let page = WholeQuery::Page(details.clone(), query.clone());
        let page = WholeIdentity::new(&upstream, page);
        if !upstream.adapter.lists_whole() {
            let fetch = |context: RequestContext| {
                let (upstream, details, query) = (upstream.clone(), details.clone(), query.clone());
                async move {
                    let (list, sent) = fetch(&upstream, &details, &query, &context).await?;
                    Ok(WholeFetch {
                        content: response(list.answer(&query, true)),
                        // A list that is cut by its limit is still what the client asked for.
                        policy: CachePolicy::Metadata,
                        sent,
                    })
                }
            };
            let answer = self
                .whole(&upstream, &page, None, None, context, fetch)
                .await?;
            return self.cached_response(&page, answer, context).await;
        }
        if let Some(hit) = self.fresh_whole(&upstream, &page, context) {
            return self.cached_response(&page, hit, context).await;
        }
        let since = self.memory.generation();
        let answer = match self.catalogue_of(&upstream, &query, context)? {
            Some((key, scope)) => self.catalogue(&upstream, &key, scope, context).await?,
            None => self.list(&upstream, &details, &query, context).await?,
        };
        let entry = match self.page_made_of(&page, &answer.entry) {
            Some(entry) => entry,
            None => {
                let written = page_of(&answer.entry, query, &upstream).await?;
                self.store_page(since, page.clone(), &answer.entry, written)
            }
        };
        let answer = WholeAnswer { entry, ..answer };
        self.cached_response(&page, answer, context).await
    }

    /// Returns the whole list that `query` asks for a page of.
    async fn list(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        details: &Forwarded,
        query: &MetadataQuery,
        context: &RequestContext,
    ) -> Result<WholeAnswer, Error> {
        let all = query.unpaged();
        let list = WholeIdentity::new(upstream, WholeQuery::List(details.clone(), all.clone()));
        let fetch = |context: RequestContext| {
            let (upstream, details, all) = (upstream.clone(), details.clone(), all.clone());
            async move {
                let (list, sent) = fetch(&upstream, &details, &all, &context).await?;
                let policy = match list.is_partial() {
                    true => CachePolicy::NoStore("incomplete"),
                    false => CachePolicy::Metadata,
                };
                Ok(WholeFetch {
                    content: Content::List(list),
                    policy,
                    sent,
                })
            }
        };
        self.whole(upstream, &list, None, None, context, fetch)
            .await
    }

    /// Returns the catalogue that the list of `query` is cut from, if its upstream has catalogues: the
    /// widest that is cached and whole, else that of the query itself.
    fn catalogue_of(
        &self,
        upstream: &Upstream,
        query: &MetadataQuery,
        context: &RequestContext,
    ) -> Result<Option<(WholeKey, CatalogueScope)>, Error> {
        let scope = match query {
            MetadataQuery::Names(query) => &query.scope,
            MetadataQuery::Values(query) => {
                if upstream.adapter.known_values(&query.field).is_some() {
                    return Ok(None);
                }
                &query.scope
            }
        };
        let scopes = upstream.adapter.catalogue_scopes(scope)?.into_iter();
        let mut catalogues = scopes.map(|scope| {
            let key = WholeQuery::Catalogue(scope.clone());
            (WholeIdentity::new(upstream, key), scope)
        });
        let own = catalogues.next_back();
        let cached = |(key, _): &(WholeKey, CatalogueScope)| {
            let hit = self.fresh_whole(upstream, key, context);
            hit.is_some_and(|hit| match &hit.entry.content {
                Content::List(list) => !list.is_partial(),
                _ => false,
            })
        };
        Ok(catalogues.find(cached).or(own))
    }

    /// Returns the catalogue of `scope`. One that its bounds cut off is as good as it gets, and cached.
    async fn catalogue(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        key: &WholeKey,
        scope: CatalogueScope,
        context: &RequestContext,
    ) -> Result<WholeAnswer, Error> {
        let fetch = |context: RequestContext| {
            let (upstream, scope) = (upstream.clone(), scope.clone());
            async move {
                let exchange = upstream.adapter.catalogue(&scope)?;
                let answered = upstream.client.run(exchange, &context.call).await?;
                Ok(WholeFetch {
                    content: Content::List(List::Catalogue(answered.value)),
                    policy: CachePolicy::Metadata,
                    sent: answered.sent,
                })
            }
        };
        self.whole(upstream, key, None, None, context, fetch).await
    }

    /// Explains how a query for the names of fields would be answered.
    pub async fn explain_names(
        &self,
        details: &Details,
        query: &FieldNamesQuery,
        context: &RequestContext,
    ) -> Result<Explanation, Error> {
        self.explain_metadata(details, MetadataQuery::Names(query.clone()), context)
            .await
    }

    /// Explains how a query for the values of a field would be answered.
    pub async fn explain_values(
        &self,
        details: &Details,
        query: &FieldValuesQuery,
        context: &RequestContext,
    ) -> Result<Explanation, Error> {
        self.explain_metadata(details, MetadataQuery::Values(query.clone()), context)
            .await
    }

    async fn explain_metadata(
        &self,
        details: &Details,
        mut query: MetadataQuery,
        context: &RequestContext,
    ) -> Result<Explanation, Error> {
        let upstream = self.registry.pick(details)?;
        let details = forwarded(&upstream, details);
        self.normalize(query.scope(), &upstream);
        let key = match self.catalogue_of(&upstream, &query, context)? {
            Some((key, _)) => key,
            None => {
                let query = match upstream.adapter.lists_whole() {
                    true => WholeQuery::List(details, query.unpaged()),
                    false => WholeQuery::Page(details, query),
                };
                WholeIdentity::new(&upstream, query)
            }
        };
        let whole = self.report_whole(&upstream, &key, context).await;
        Ok(Explanation::new(
            &upstream,
            Vec::new(),
            Some(whole),
            context,
        ))
    }

    /// Returns the window in which names, values and series are looked up for one from `start` to
    /// `end`: widened to whole `metadata_ttl`s, so that a sliding window finds what was fetched a
    /// moment ago.
    pub fn metadata_window(
        &self,
        upstream: &Upstream,
        start: Option<Millis>,
        end: Option<Millis>,
    ) -> (Option<Millis>, Option<Millis>) {
        let ttl = Millis::try_from(upstream.freshness.metadata_ttl.as_millis());
        let grid = ttl.ok().and_then(Step::new).unwrap_or(Step::SECOND);
        // Times without a calendar date stay as they are.
        let wide = |time: Millis, to: fn(&Step, Millis) -> Millis| match time {
            0..=MAX_TIME => to(&grid, time),
            _ => time,
        };
        (
            start.map(|t| wide(t, Step::floor)),
            end.map(|t| wide(t, Step::ceil)),
        )
    }

    /// Makes queries with the same answer equal: the window is widened, and the limit is capped at
    /// `server.max_points`.
    fn normalize(&self, scope: &mut Scope, upstream: &Upstream) {
        (scope.start, scope.end) = self.metadata_window(upstream, scope.start, scope.end);
        let most = self.max_points;
        scope.limit = Some(scope.limit.map_or(most, |limit| limit.min(most)));
    }
}

/// Writes the page of the list in `entry`, of `upstream`, that answers `query`.
async fn page_of(
    entry: &Arc<WholeEntry>,
    query: MetadataQuery,
    upstream: &Arc<Upstream>,
) -> Result<Content, Error> {
    let Content::List(list) = &entry.content else {
        return Err(Error::new(Kind::Internal, "a response is no list"));
    };
    if list.len() <= PAGE_INLINE {
        return written(list, &query, upstream);
    }
    let (entry, upstream) = (entry.clone(), upstream.clone());
    let write = move || match &entry.content {
        Content::List(list) => written(list, &query, &upstream),
        _ => Err(Error::new(Kind::Internal, "a response is no list")),
    };
    let written = crate::work::elsewhere(write).await;
    written.map_err(|e| {
        let message = format!("writing a list failed: {e}");
        Error::new(Kind::Internal, message)
    })?
}

fn written(list: &List, query: &MetadataQuery, upstream: &Upstream) -> Result<Content, Error> {
    Ok(response(match list {
        List::Catalogue(catalogue) => List::cut(catalogue, query, upstream)?.answer(query, false),
        list => list.answer(query, false),
    }))
}

/// Fetches the list for `query` from `upstream`. Returns it, and the time at which it was requested.
async fn fetch(
    upstream: &Upstream,
    details: &Forwarded,
    query: &MetadataQuery,
    context: &RequestContext,
) -> Result<(List, Duration), Error> {
    let call = &context.call;
    Ok(match query {
        MetadataQuery::Names(query) => {
            let exchange = upstream.adapter.field_names(details, query)?;
            let answered = upstream.client.run(exchange, call).await?;
            let mut names = answered.value;
            names.fields.shrink_to_fit();
            (List::Names(names), answered.sent)
        }
        MetadataQuery::Values(query) => {
            if let Some(values) = upstream.adapter.known_values(&query.field) {
                let values = values.into_iter().map(FieldValue::Complete).collect();
                let partial = false;
                let list = List::Values(FieldValues { values, partial });
                return Ok((list, context.arrived));
            }
            let exchange = upstream.adapter.field_values(details, query)?;
            let answered = upstream.client.run(exchange, call).await?;
            let mut values = answered.value;
            values.values.shrink_to_fit();
            (List::Values(values), answered.sent)
        }
    })
}
