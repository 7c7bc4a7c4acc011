//! Looks at the mesh from outside, as Prometheus and an operator do: scrapes each sidecar, asks the control API what
//! is said, and tells what has changed.
//!
//! **Does not** show anything: [`super::view`] draws a [`Board`].

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use outrigger_config::{Config, check};
use tokio::time::{Instant, timeout};

use super::DemoError;
use super::edges::{Edges, Row};
use super::exposition::{self, Sample};
use super::places::Instance;
use super::traffic::Shoppers;
use crate::client::{Api, Ask, ClientError};
use crate::server::WholeConfig;

/// How long a scrape may take before this look goes on without it.
const SCRAPE_WITHIN: Duration = Duration::from_secs(2);

/// How many of the last events are kept: more than a tall terminal shows.
const EVENTS_MAX: usize = 50;

/// The expected shares of a service's backends, by service and backend.
type Weights = HashMap<(String, String), f64>;

/// What is known by now.
#[derive(Debug)]
pub(super) struct Watch {
    sidecars: Vec<Seen>,
    control: Api,
    edges: Edges,
    started: Instant,
    looked: Instant,
    /// The version whose arrival everywhere was told last.
    told: String,
    weights: Weights,
    events: VecDeque<String>,
}

/// One sidecar as it was seen last.
#[derive(Debug)]
struct Seen {
    instance: Instance,
    admin: Api,
    version: String,
    refused: f64,
}

/// All that is shown at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    pub(super) running: Duration,
    /// The newest version that any sidecar serves, how many serve it, and of how many.
    pub(super) version: String,
    pub(super) serving: usize,
    pub(super) sidecars: usize,
    pub(super) shoppers: Shoppers,
    pub(super) lines: Vec<BoardLine>,
    pub(super) events: Vec<String>,
}

/// One edge.
#[derive(Clone, Debug)]
pub(super) struct BoardLine {
    pub(super) row: Row,
    /// The share that the configuration gives it.
    pub(super) weight: Option<f64>,
    /// Requests a second, scrape by scrape.
    pub(super) rates: Vec<f64>,
}

impl Watch {
    /// Begins to watch. `sidecars` are the addresses of their admin pages.
    pub(super) fn new(sidecars: Vec<(Instance, Api)>, control: Api) -> Self {
        let seen = |(instance, admin)| Seen {
            instance,
            admin,
            version: String::new(),
            refused: 0.0,
        };
        let now = Instant::now();
        Self {
            sidecars: sidecars.into_iter().map(seen).collect(),
            control,
            edges: Edges::default(),
            started: now,
            looked: now,
            told: String::new(),
            weights: Weights::new(),
            events: VecDeque::new(),
        }
    }

    /// Looks once at everything.
    pub(super) async fn look(&mut self) -> Result<(), DemoError> {
        let mut news = Vec::new();
        for seen in &mut self.sidecars {
            let name = seen.instance.name();
            match timeout(SCRAPE_WITHIN, seen.admin.text(Ask::get("/metrics"))).await {
                Ok(Ok(page)) => {
                    let samples = exposition::parse(&page);
                    let entrance = seen.instance == Instance::Frontend;
                    self.edges.observe(name, entrance, &samples);
                    news.extend(seen.update(&samples));
                }
                Ok(Err(error)) => news.push(format!("{name} was not scraped: {error}")),
                Err(_) => news.push(format!(
                    "{name} was not scraped: no answer within {}s",
                    SCRAPE_WITHIN.as_secs()
                )),
            }
        }
        let now = Instant::now();
        self.edges.complete((now - self.looked).as_secs_f64());
        self.looked = now;
        let (version, serving) = self.version();
        if serving == self.sidecars.len() && version != self.told {
            news.push(self.arrived(&version).await?);
            self.told = version;
        }
        for piece in news {
            self.tell(&piece);
        }
        Ok(())
    }

    /// What is to be shown, but for what is known without a look: the time and what the shoppers saw.
    pub(super) fn board(&self) -> Board {
        let (version, serving) = self.version();
        let rows = self.edges.recent().into_iter().zip(self.edges.rates());
        let line = |(row, rates): (Row, Vec<f64>)| BoardLine {
            weight: self
                .weights
                .get(&(row.service.clone(), row.backend.clone()))
                .copied(),
            row,
            rates,
        };
        Board {
            version,
            serving,
            sidecars: self.sidecars.len(),
            lines: rows.map(line).collect(),
            events: self.events.iter().cloned().collect(),
            ..Board::default()
        }
    }

    /// The rows of the whole time.
    pub(super) fn whole(&self) -> Vec<Row> {
        self.edges.whole()
    }

    /// The newest version that is served, and by how many. Versions are numbers that only grow.
    pub(super) fn version(&self) -> (String, usize) {
        let newest = self.sidecars.iter().map(|seen| &seen.version);
        let newest = newest.max_by_key(|version| version.parse::<u64>().unwrap_or(0));
        let newest = newest.cloned().unwrap_or_default();
        let serving = self.sidecars.iter().filter(|seen| seen.version == newest);
        (newest.clone(), serving.count())
    }

    /// A version has come to every sidecar: what does it say?
    async fn arrived(&mut self, version: &str) -> Result<String, ClientError> {
        let whole: WholeConfig = self.control.json(Ask::get("/v1/config")).await?;
        let documents: Vec<_> = whole
            .documents
            .into_iter()
            .map(|versioned| versioned.document)
            .collect();
        // The control API has checked it: were it wrong, it would not have been stored.
        let config = check(&documents).unwrap_or_default();
        self.weights = weights(&config);
        let shared = config
            .services
            .iter()
            .filter(|service| service.backends.len() > 1);
        let said: Vec<String> = shared
            .map(|service| {
                let backends = service.backends.iter().filter_map(|backend| {
                    let key = (service.name.clone(), backend.name.clone());
                    let weight = self.weights.get(&key)?;
                    Some(format!("{} {:.0}%", backend.name, weight * 100.0))
                });
                let backends: Vec<String> = backends.collect();
                format!("{} {}", service.name, backends.join(", "))
            })
            .collect();
        let said = said.join("; ");
        let colon = if said.is_empty() { "" } else { ": " };
        Ok(format!("version {version} serves on every sidecar{colon}{said}"))
    }

    fn tell(&mut self, news: &str) {
        tracing::info!(news);
        let at = clock(self.started.elapsed());
        self.events.push_back(format!("{at}  {news}"));
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }
}

impl Seen {
    /// Takes in what the sidecar says of its configuration, and gives back what is worth telling.
    fn update(&mut self, samples: &[Sample]) -> Option<String> {
        let named = |name: &'static str| samples.iter().filter(move |sample| sample.name == name);
        if let Some(info) = named("outrigger_config_info").next() {
            info.label("version").clone_into(&mut self.version);
        }
        let refused: f64 = named("outrigger_config_pushes_total")
            .filter(|sample| sample.label("result") == "refused")
            .map(|sample| sample.value)
            .sum();
        let before = std::mem::replace(&mut self.refused, refused);
        let name = self.instance.name();
        (refused > before).then(|| {
            format!(
                "{name} refused a configuration; version {} serves on",
                self.version
            )
        })
    }
}

/// The share that each backend has of the requests that no other route takes: those of the last route that matches
/// every request.
fn weights(config: &Config) -> Weights {
    let mut weights = Weights::new();
    for service in &config.services {
        let open = service.routes.iter().find(|route| route.matches.is_empty());
        let whole: u32 = open.map_or(0, |route| route.to.iter().map(|to| to.weight).sum());
        for backend in &service.backends {
            let weight = match open {
                Some(route) if whole > 0 => {
                    let to = route.to.iter().filter(|to| to.backend == backend.name);
                    f64::from(to.map(|to| to.weight).sum::<u32>()) / f64::from(whole)
                }
                None if service.routes.is_empty() && service.backends.len() == 1 => 1.0,
                Some(_) | None => continue,
            };
            weights.insert((service.name.clone(), backend.name.clone()), weight);
        }
    }
    weights
}

/// A time since the start, as a stop-watch shows it.
pub(super) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use outrigger_config::split;

    use super::*;

    fn weights_of(text: &str) -> Vec<(String, f64)> {
        let config = check(&split("test", text).unwrap()).unwrap();
        let found = weights(&config).into_iter();
        let mut found: Vec<_> = found.map(|((_, backend), weight)| (backend, weight)).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    const BACKENDS: &str =
        "kind: Service\nname: a\nbackends:\n  - { name: v1, discover: { static: [127.0.0.1:1] } }\n";

    #[test]
    fn weights_are_those_of_the_route_that_takes_the_rest() {
        let second = "  - { name: v2, discover: { static: [127.0.0.1:2] } }\n";
        let routes = "routes:\n  - { name: x, match: [{ methods: [PUT] }], to: [{ backend: v2 }] }\n  - { name: y, to: [{ backend: v1, weight: 3 }, { backend: v2, weight: 1 }] }\n";
        let found = weights_of(&format!("{BACKENDS}{second}{routes}"));
        assert_eq!(found, [("v1".to_owned(), 0.75), ("v2".to_owned(), 0.25)]);
    }

    #[test]
    fn an_only_backend_without_routes_has_everything() {
        assert_eq!(weights_of(BACKENDS), [("v1".to_owned(), 1.0)]);
    }

    #[test]
    fn the_clock_counts_minutes_on() {
        assert_eq!(clock(Duration::from_secs(59)), "00:59");
        assert_eq!(clock(Duration::from_secs(6_001)), "100:01");
    }
}
