//! What a route does with its requests, made ready when the snapshot is compiled: names, values, paths and patterns are
//! resolved here, so that nothing is left to be read when a request comes.
//!
//! What is done with them is [`crate::request`]'s.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use outrigger_config::actions::{self, Scheme};
use outrigger_config::pattern::{self, Replacement};
use outrigger_config::service;

use crate::telemetry::metrics::RouteMetrics;

/// What a route does with its requests.
#[derive(Debug)]
pub(crate) enum Action {
    /// They go on as they came.
    Forward,
    /// They go on changed, or their answers do.
    Edit(Box<Edits>),
    /// They are answered here.
    Answer(Box<OwnAnswer>),
}

/// What is changed in what goes on.
#[derive(Debug)]
pub(crate) struct Edits {
    pub(crate) host: Option<HeaderValue>,
    pub(crate) path: Option<NewPath>,
    pub(crate) headers: HeaderPairs,
}

/// What becomes of a path.
#[derive(Debug)]
pub(crate) enum NewPath {
    /// This one takes its place.
    Whole(String),
    /// This one takes the place of the prefix that matched, kept without a trailing slash: `/` is kept as nothing.
    Prefix(String),
    /// What a pattern finds is replaced.
    Replaced(Box<Replacement>),
}

/// What is changed in the headers of requests and of their answers.
#[derive(Debug, Default)]
pub(crate) struct HeaderPairs {
    pub(crate) request: HeaderEdits,
    pub(crate) response: HeaderEdits,
}

/// What is changed in the headers of a message.
#[derive(Debug, Default)]
pub(crate) struct HeaderEdits {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

/// An answer of the sidecar's own.
#[derive(Debug)]
pub(crate) struct OwnAnswer {
    pub(crate) says: Says,
    /// What is changed in its headers.
    pub(crate) headers: HeaderEdits,
    /// The series of the requests that are answered so.
    pub(crate) series: Arc<RouteMetrics>,
}

/// What an answer of the sidecar's own says.
#[derive(Debug)]
pub(crate) enum Says {
    /// That the caller is to ask elsewhere.
    Redirect(Redirect),
    /// Always the same.
    Fixed(Fixed),
}

/// Another URL for a request. What is not given is the request's own.
#[derive(Debug)]
pub(crate) struct Redirect {
    pub(crate) status: StatusCode,
    pub(crate) scheme: Option<Scheme>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<NewPath>,
    pub(crate) strip_query: bool,
}

/// An answer that is always the same.
#[derive(Debug)]
pub(crate) struct Fixed {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Action {
    /// The action of a route, which counts into this series if it answers by itself.
    ///
    /// # Errors
    /// What cannot be made into what runs.
    pub(super) fn compile(
        service: &service::Service,
        route: &service::Route,
        series: impl FnOnce() -> Arc<RouteMetrics>,
    ) -> Result<Self, String> {
        let forwards = route.redirect.is_none() && route.respond.is_none();
        if service.protocol == service::Protocol::Tcp && !forwards {
            return Err("it speaks tcp, where there are no requests to answer".to_owned());
        }
        let says = match (route.to.is_empty(), &route.redirect, &route.respond) {
            (false, None, None) => return Edits::of_route(route),
            (true, Some(redirect), None) => Says::Redirect(Redirect::compile(redirect)?),
            (true, None, Some(respond)) => Says::Fixed(Fixed::compile(respond)?),
            _ => return Err("a route needs exactly one of to, redirect, respond".to_owned()),
        };
        Ok(Self::Answer(Box::new(OwnAnswer {
            says,
            headers: HeaderEdits::compile(route.response_headers.as_ref())?,
            series: series(),
        })))
    }
}

impl Edits {
    fn of_route(route: &service::Route) -> Result<Action, String> {
        let (rewrite, request, response) = (
            &route.rewrite,
            route.request_headers.as_ref(),
            route.response_headers.as_ref(),
        );
        if rewrite.is_none() && request.is_none() && response.is_none() {
            return Ok(Action::Forward);
        }
        let rewrite = rewrite.clone().unwrap_or_default();
        let host = rewrite.host.as_deref().map(value).transpose()?;
        let path = match (rewrite.path, rewrite.prefix, rewrite.regex) {
            (None, None, None) => None,
            (None, None, Some(regex)) => {
                let found = pattern::anywhere(&regex.pattern)?;
                Some(NewPath::Replaced(Box::new(Replacement::new(
                    found,
                    &regex.substitution,
                )?)))
            }
            (path, prefix, None) => NewPath::compile(path, prefix)?,
            _ => return Err("a rewrite needs at most one of path, prefix, regex".to_owned()),
        };
        let headers = HeaderPairs::compile(request, response)?;
        Ok(Action::Edit(Box::new(Self { host, path, headers })))
    }
}

impl NewPath {
    fn compile(path: Option<String>, prefix: Option<String>) -> Result<Option<Self>, String> {
        match (path, prefix) {
            (None, None) => Ok(None),
            (Some(path), None) => Ok(Some(Self::Whole(path))),
            (None, Some(prefix)) => Ok(Some(Self::Prefix(prefix.trim_end_matches('/').to_owned()))),
            (Some(_), Some(_)) => Err("path and prefix are given together".to_owned()),
        }
    }
}

impl HeaderPairs {
    /// What one of the backends of a route adds to what the route says; `None` if nothing.
    pub(super) fn of_target(target: &service::Target) -> Result<Option<Box<Self>>, String> {
        let (request, response) = (target.request_headers.as_ref(), target.response_headers.as_ref());
        if request.is_none() && response.is_none() {
            return Ok(None);
        }
        Self::compile(request, response).map(Box::new).map(Some)
    }

    fn compile(
        request: Option<&actions::HeaderEdits>,
        response: Option<&actions::HeaderEdits>,
    ) -> Result<Self, String> {
        Ok(Self {
            request: HeaderEdits::compile(request)?,
            response: HeaderEdits::compile(response)?,
        })
    }
}

impl HeaderEdits {
    fn compile(edits: Option<&actions::HeaderEdits>) -> Result<Self, String> {
        let Some(actions::HeaderEdits { set, add, remove }) = edits else {
            return Ok(Self::default());
        };
        let pairs = |pairs: &std::collections::BTreeMap<String, String>| {
            let pairs = pairs
                .iter()
                .map(|(name, text)| Ok((self::name(name)?, value(text)?)));
            pairs.collect::<Result<Vec<_>, String>>()
        };
        Ok(Self {
            set: pairs(set)?,
            add: pairs(add)?,
            remove: remove
                .iter()
                .map(|name| self::name(name))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Makes the edits.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

impl Redirect {
    fn compile(redirect: &actions::Redirect) -> Result<Self, String> {
        Ok(Self {
            status: status(redirect.status)?,
            scheme: redirect.scheme,
            host: redirect.host.clone(),
            port: redirect.port,
            path: NewPath::compile(redirect.path.clone(), redirect.prefix.clone())?,
            strip_query: redirect.strip_query,
        })
    }
}

impl Fixed {
    fn compile(respond: &actions::Respond) -> Result<Self, String> {
        let body = Bytes::from(respond.body.clone().unwrap_or_default());
        let mut headers = HeaderMap::with_capacity(respond.headers.len() + 1);
        if !body.is_empty() {
            headers.insert(
                CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            );
        }
        for (name, text) in &respond.headers {
            headers.insert(self::name(name)?, value(text)?);
        }
        Ok(Self {
            status: status(respond.status)?,
            headers,
            body,
        })
    }
}

fn name(name: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(name).map_err(|_| format!("`{name}` is not a header name"))
}

fn value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::try_from(text).map_err(|_| format!("`{text}` cannot be the value of a header"))
}

fn status(status: u16) -> Result<StatusCode, String> {
    StatusCode::from_u16(status).map_err(|_| format!("{status} is not a status"))
}
