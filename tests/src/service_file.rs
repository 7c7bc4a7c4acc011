//! Service files, written field by field for tests that would otherwise be full of braces.

use std::fmt::{self, Display, Write as _};
use std::net::SocketAddr;

use crate::upstream::Upstream;

/// A service file. Printing it gives the YAML.
#[derive(Clone, Debug)]
pub struct ServiceFile {
    name: String,
    top: String,
    backends: String,
    routes: String,
}

impl ServiceFile {
    /// A service with this name and nothing else.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            top: String::new(),
            backends: String::new(),
            routes: String::new(),
        }
    }

    /// Adds a field of the service, such as `balance: round_robin`.
    #[must_use]
    pub fn field(mut self, line: &str) -> Self {
        writeln!(self.top, "{line}").expect("a string takes everything");
        self
    }

    /// Says where the application listens.
    #[must_use]
    pub fn app(self, address: SocketAddr) -> Self {
        self.field(&format!("app: {address}"))
    }

    /// Adds a backend with these endpoints.
    #[must_use]
    pub fn backend(self, name: &str, endpoints: &[SocketAddr]) -> Self {
        let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        self.discover(name, &format!("static: [{}]", endpoints.join(", ")))
    }

    /// Adds a backend for each of these, with their names, and the upstream as its one endpoint.
    #[must_use]
    pub fn backend_each(self, upstreams: &[Upstream]) -> Self {
        let add = |file: Self, upstream: &Upstream| file.backend(upstream.name(), &[upstream.address()]);
        upstreams.iter().fold(self, add)
    }

    /// Adds a backend with this `discover`.
    #[must_use]
    pub fn discover(mut self, name: &str, discover: &str) -> Self {
        writeln!(
            self.backends,
            "  - {{ name: {name}, discover: {{ {discover} }} }}"
        )
        .expect("a string takes everything");
        self
    }

    /// Adds a backend with these sources, each in braces.
    #[must_use]
    pub fn sources(mut self, name: &str, sources: &str) -> Self {
        writeln!(self.backends, "  - {{ name: {name}, discover: [{sources}] }}")
            .expect("a string takes everything");
        self
    }

    /// Adds a route to these backends by weight, with further fields, one a line.
    #[must_use]
    pub fn route(self, name: &str, to: &[(&str, u32)], fields: &str) -> Self {
        let to: Vec<_> = to
            .iter()
            .map(|(backend, weight)| format!("{{ backend: {backend}, weight: {weight} }}"))
            .collect();
        self.rule(name, &format!("to: [{}]\n{fields}", to.join(", ")))
    }

    /// Adds a route with these fields, one a line.
    #[must_use]
    pub fn rule(mut self, name: &str, fields: &str) -> Self {
        writeln!(self.routes, "  - name: {name}").expect("a string takes everything");
        for field in fields.lines() {
            writeln!(self.routes, "    {}", field.trim()).expect("a string takes everything");
        }
        self
    }
}

impl Display for ServiceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            top,
            backends,
            routes,
        } = self;
        write!(f, "kind: Service\nname: {name}\n{top}backends:\n{backends}")?;
        if !routes.is_empty() {
            write!(f, "routes:\n{routes}")?;
        }
        Ok(())
    }
}

/// A service with one backend `v1`, these endpoints and one route `default` with these fields.
pub fn simple(name: &str, endpoints: &[&Upstream], fields: &str) -> ServiceFile {
    let endpoints: Vec<_> = endpoints.iter().map(|upstream| upstream.address()).collect();
    ServiceFile::new(name)
        .backend("v1", &endpoints)
        .route("default", &[("v1", 1)], fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prints_what_a_person_would_write() {
        let address = SocketAddr::from(([127, 0, 0, 1], 9080));
        let file = ServiceFile::new("reviews")
            .app(address)
            .backend("v1", &[address, address])
            .route("default", &[("v1", 9)], "timeout: { request: 1s }");
        assert_eq!(
            file.to_string(),
            "kind: Service\nname: reviews\napp: 127.0.0.1:9080\nbackends:\n  \
             - { name: v1, discover: { static: [127.0.0.1:9080, 127.0.0.1:9080] } }\nroutes:\n  \
             - name: default\n    to: [{ backend: v1, weight: 9 }]\n    timeout: { request: 1s }\n"
        );
    }
}
