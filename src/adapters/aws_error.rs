//! Errors as AWS' services write them, in each of their formats.

use crate::adapters::Response;

/// Most characters of a message that are passed on.
const LONGEST_MESSAGE: usize = 300;

/// Most bytes of a body that are read.
const MOST_READ: usize = 64 << 10;

/// An error of an AWS service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AwsError {
    /// Its code, such as `ThrottlingException`; empty where the response names none.
    pub(crate) code: String,
    /// The first line of its text. Errors about signatures go on to repeat the request as it should
    /// have been signed, session token included.
    pub(crate) message: String,
}

impl AwsError {
    /// Returns the error that `response` holds: of the query protocol's headers, of a JSON body, or
    /// of an XML one, which gateways in front of JSON services write too.
    pub(crate) fn read(response: &Response) -> Self {
        let header = |name| response.headers.get(name)?.to_str().ok();
        let named = header("x-amzn-query-error").or_else(|| header("x-amzn-errortype"));
        let named = named.and_then(|text| text.split([';', ':']).next());
        let body = response.body.get(..MOST_READ).unwrap_or(&response.body);
        let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let member = |names: [&str; 2]| names.into_iter().find_map(|n| json.get(n)?.as_str());
        let text = String::from_utf8_lossy(body);
        let code = named
            .or_else(|| member(["__type", "code"]))
            .or_else(|| element(&text, "Code"))
            .unwrap_or_default();
        let message = member(["message", "Message"])
            .or_else(|| element(&text, "Message"))
            .unwrap_or_default();
        Self {
            // A name may follow that of its service: `com.amazonaws…#Throttling`.
            code: plain(code.rsplit('#').next().unwrap_or_default()),
            message: plain(message),
        }
    }

    /// Returns the error that stands in `text` as XML; with no code if none does.
    #[cfg(feature = "aws")]
    pub(crate) fn in_xml(text: &str) -> Self {
        let of = |name| plain(element(text, name).unwrap_or_default());
        Self {
            code: of("Code"),
            message: of("Message"),
        }
    }
}

/// Returns the text between the tags of the first element `name`.
pub(crate) fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// Returns the first line of `text`, as far as it is passed on.
fn plain(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = line.chars().filter(|c| !c.is_control());
    line.take(LONGEST_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;

    fn read(header: Option<(&'static str, &'static str)>, body: &'static str) -> (String, String) {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let error = AwsError::read(&Response {
            status: StatusCode::BAD_REQUEST,
            headers,
            body: Bytes::from_static(body.as_bytes()),
        });
        (error.code, error.message)
    }

    #[test]
    fn errors_are_read_in_every_format() {
        let pair = |code: &str, message: &str| (code.to_owned(), message.to_owned());
        assert_eq!(
            read(
                Some(("x-amzn-query-error", "Throttling;Sender")),
                r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#
            ),
            pair("Throttling", "Rate exceeded")
        );
        assert_eq!(
            read(
                None,
                r#"{"__type":"com.amazonaws.cloudwatch#InvalidNextToken","Message":"x"}"#
            ),
            pair("InvalidNextToken", "x")
        );
        assert_eq!(
            read(
                Some(("x-amzn-errortype", "AccessDeniedException:http://x/")),
                r#"{"message":null}"#
            ),
            pair("AccessDeniedException", "")
        );
        assert_eq!(
            read(
                None,
                "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code><Message>No match.\n\nThe Canonical String: secret</Message></Error></ErrorResponse>"
            ),
            pair("SignatureDoesNotMatch", "No match.")
        );
        assert_eq!(read(None, "<html>"), pair("", ""));
        // Of a long body the beginning.
        let filler = " ".repeat(MOST_READ);
        let json = format!(r#"{{"message":"x"{filler}}}"#);
        assert_eq!(
            read(Some(("x-amzn-errortype", "Y")), json.leak()),
            pair("Y", "")
        );
        let xml = format!("<Code>Y</Code>{filler}<Message>x</Message>");
        assert_eq!(read(None, xml.leak()), pair("Y", ""));
    }
}
