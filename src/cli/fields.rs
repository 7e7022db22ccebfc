//! `heliostat fields` and `heliostat values`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value};

use super::client::ServerConnection;
use super::query::{Failed, ended, failed, selector, typed};
use super::say;
use super::source::Source;
use super::view::plain_text;
use crate::front::mirror::Method;
use crate::model::{
    Field, FieldNames, FieldNamesQuery, FieldType, FieldValue, FieldValuesQuery, Scope,
};
use crate::wire::mirror::request::{write_field_names, write_field_values};
use crate::wire::mirror::response::{read_field_names, read_field_values};

pub(super) const FIELDS_EXAMPLES: &str = "Examples:
  heliostat fields
  heliostat fields --upstream prom __gauge__=node_load1";

pub(super) const VALUES_EXAMPLES: &str = "Examples:
  heliostat values name
  heliostat values host --prefix web- name=cpu.usage_percent
  heliostat values job --upstream prom";

/// Names of fields that conditions can have.
#[derive(Debug, Args)]
pub(super) struct Fields {
    /// Only fields of series that satisfy these conditions
    #[arg(value_name = "FIELD=VALUE")]
    conditions: Vec<String>,

    /// The upstream to ask, by name [default: the default upstream]
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,

    #[command(flatten)]
    connection: ServerConnection,

    /// Print the answer unchanged
    #[arg(long)]
    json: bool,
}

/// Values of one field.
#[derive(Debug, Args)]
pub(super) struct Values {
    /// The field
    #[arg(value_name = "FIELD")]
    field: String,

    /// Only values of series that satisfy these conditions
    #[arg(value_name = "FIELD=VALUE")]
    conditions: Vec<String>,

    /// Only values that begin with TEXT; a value that ends in * stands for all that begin with it
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,

    /// Most values
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=2_147_483_647))]
    limit: u32,

    /// The upstream to ask, by name [default: the default upstream]
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,

    #[command(flatten)]
    connection: ServerConnection,

    /// Print the answer unchanged
    #[arg(long)]
    json: bool,
}

fn details(upstream: Option<&String>) -> Map<String, Value> {
    let name = |name: &String| ("upstream".to_owned(), name.clone().into());
    upstream.map(name).into_iter().collect()
}

/// Returns the fields of the series that satisfy `conditions`.
pub(super) fn names(
    source: &Source,
    connection: &ServerConnection,
    details: &Map<String, Value>,
    conditions: &[String],
) -> Result<FieldNames, Failed> {
    let scope = Scope {
        selector: selector(conditions).map_err(typed)?,
        ..Scope::default()
    };
    let body = write_field_names(details, &FieldNamesQuery { scope });
    let reply = source.mirror(connection, Method::FieldNames, body);
    let reply = reply
        .and_then(super::client::Reply::accepted)
        .map_err(failed)?;
    read_field_names(&reply.body).map_err(|e| failed(e.to_string()))
}

impl Fields {
    /// Lists the fields that `source` has.
    pub(super) fn run(&self, source: &Source) -> ExitCode {
        ended(self.outcome(source))
    }

    fn outcome(&self, source: &Source) -> Result<(), Failed> {
        let details = details(self.upstream.as_ref());
        if self.json {
            let scope = Scope {
                selector: selector(&self.conditions).map_err(typed)?,
                ..Scope::default()
            };
            let body = write_field_names(&details, &FieldNamesQuery { scope });
            return as_it_came(source, &self.connection, Method::FieldNames, body);
        }
        let FieldNames { fields, partial } =
            names(source, &self.connection, &details, &self.conditions)?;
        let widest = fields
            .iter()
            .map(|f| f.name.chars().count())
            .max()
            .unwrap_or(0);
        for field in &fields {
            let kind = match field.kind {
                FieldType::String => "text",
                FieldType::Number => "number",
                FieldType::Boolean => "boolean",
            };
            say(&format!("{:widest$}  {kind}\n", plain_text(&field.name)));
        }
        if partial {
            say("…\n");
        }
        Ok(())
    }
}

impl Values {
    /// Lists the values that `source` has.
    pub(super) fn run(&self, source: &Source) -> ExitCode {
        ended(self.outcome(source))
    }

    fn outcome(&self, source: &Source) -> Result<(), Failed> {
        let details = details(self.upstream.as_ref());
        let FieldNames { fields, partial } =
            names(source, &self.connection, &details, &self.conditions)?;
        let known = fields.iter().find(|field| field.name == self.field);
        if known.is_none() && !partial && !self.field.is_empty() {
            let names: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
            let names = plain_text(&names.join(", "));
            return Err(failed(format!(
                "unknown field {:?}; there are: {names}",
                self.field
            )));
        }
        let query = FieldValuesQuery {
            scope: Scope {
                selector: selector(&self.conditions).map_err(typed)?,
                limit: Some(self.limit),
                ..Scope::default()
            },
            field: known.cloned().unwrap_or_else(|| Field::text(&self.field)),
            prefix: self.prefix.clone(),
            offset: 0,
        };
        let body = write_field_values(&details, &query);
        if self.json {
            return as_it_came(source, &self.connection, Method::FieldValues, body);
        }
        let reply = source.mirror(&self.connection, Method::FieldValues, body);
        let reply = reply
            .and_then(super::client::Reply::accepted)
            .map_err(failed)?;
        let listed = read_field_values(&reply.body).map_err(|e| failed(e.to_string()))?;
        for value in &listed.values {
            match value {
                FieldValue::Complete(text) => say(&format!("{}\n", plain_text(text))),
                FieldValue::Prefix(text) => say(&format!("{}*\n", plain_text(text))),
            }
        }
        if listed.partial {
            say("…\n");
        }
        Ok(())
    }
}

fn as_it_came(
    source: &Source,
    connection: &ServerConnection,
    method: Method,
    body: Vec<u8>,
) -> Result<(), Failed> {
    let reply = source.mirror(connection, method, body);
    let reply = reply
        .and_then(super::client::Reply::accepted)
        .map_err(failed)?;
    say(&reply.body);
    say("\n");
    Ok(())
}
