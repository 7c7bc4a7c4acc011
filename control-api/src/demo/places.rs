//! Where everything of the demo listens, and the files of `config-examples/` that say so.
//!
//! The files are in the program, so that the demo needs no folder beside it. On other ports than the usual ones the
//! same texts are used with other addresses.
//!
//! **Does not** open a socket.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

/// The first port of the demo, as the files of `config-examples/` have it.
pub(crate) const PORT_BASE_DEFAULT: u16 = 9910;

/// How far the ports of one instance are from those of the next: told apart by their tens.
const PORTS_EACH: u16 = 10;

/// One running copy of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instance {
    Frontend,
    ReviewsV1,
    ReviewsV2,
    Ratings,
}

/// Where one instance listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// The application.
    pub(super) app: SocketAddr,
    /// Its sidecar, for those who call it.
    pub(super) inbound: SocketAddr,
    /// Its sidecar, for whom it calls.
    pub(super) outbound: SocketAddr,
    /// Its sidecar, for operators.
    pub(super) admin: SocketAddr,
    /// Its sidecar, for Prometheus.
    pub(super) scrape: SocketAddr,
}

/// A file of `config-examples/`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Example {
    /// What pushing it does.
    pub(super) what: &'static str,
    /// Its name.
    pub(super) file: &'static str,
    /// What it says, for the usual ports.
    text: &'static str,
}

/// What the demo begins with.
pub(super) const SHOP: Example = Example {
    what: "back to one in ten",
    file: "demo-shop.yaml",
    text: include_str!("../../../config-examples/demo-shop.yaml"),
};

/// Half and half.
pub(super) const HALF: Example = Example {
    what: "half of the reviews from v2",
    file: "demo-half.yaml",
    text: include_str!("../../../config-examples/demo-half.yaml"),
};

/// All to the version that fails now and then.
pub(super) const SHIFT: Example = Example {
    what: "all of them",
    file: "demo-shift.yaml",
    text: include_str!("../../../config-examples/demo-shift.yaml"),
};

impl Instance {
    /// All, callers before those they call.
    pub(super) const ALL: [Self; 4] = [Self::Frontend, Self::ReviewsV1, Self::ReviewsV2, Self::Ratings];

    /// Its name, which is also that of the service document that its sidecar stands for.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::ReviewsV1 => "reviews-v1",
            Self::ReviewsV2 => "reviews-v2",
            Self::Ratings => "ratings",
        }
    }

    /// Its version.
    pub(super) fn version(self) -> &'static str {
        match self {
            Self::ReviewsV2 => "v2",
            Self::Frontend | Self::ReviewsV1 | Self::Ratings => "v1",
        }
    }

    /// Where it listens if the demo's ports begin at `base`; at 0 the system chooses each.
    pub(super) fn ports(self, base: u16) -> Ports {
        let first = base.saturating_add(PORTS_EACH * self as u16);
        let port = |offset| {
            let port = if base == 0 {
                0
            } else {
                first.saturating_add(offset)
            };
            SocketAddr::from((Ipv4Addr::LOCALHOST, port))
        };
        Ports {
            app: port(0),
            inbound: port(1),
            outbound: port(2),
            admin: port(3),
            scrape: port(4),
        }
    }
}

/// The highest port that the demo can begin with.
pub(crate) const PORT_BASE_MAX: u16 = u16::MAX - PORTS_EACH * Instance::ALL.len() as u16;

/// Where the addresses that the files name are to be found in this run.
#[derive(Debug, Default)]
pub(super) struct Moved(HashMap<u16, SocketAddr>);

impl Moved {
    /// What `usual` names is at `actual`.
    pub(super) fn add(&mut self, usual: SocketAddr, actual: SocketAddr) {
        self.0.insert(usual.port(), actual);
    }

    /// The text of a file, with the addresses of this run.
    pub(super) fn text(&self, example: Example) -> String {
        /// How every address of the files begins.
        const HOST: &str = "127.0.0.1:";
        let mut text = String::with_capacity(example.text.len());
        let mut pieces = example.text.split(HOST);
        text.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
            let (port, rest) = piece.split_at(digits);
            match port.parse().ok().and_then(|port: u16| self.0.get(&port)) {
                Some(actual) => text.push_str(&actual.to_string()),
                None => text.extend([HOST, port]),
            }
            text.push_str(rest);
        }
        text
    }

    /// A path by which `outrigger push` finds the file: that of the repository if `directory` is one and the file
    /// there says what this run needs, else a copy in `data`.
    pub(super) fn path(&self, example: Example, directory: &Path, data: &Path) -> std::io::Result<String> {
        let text = self.text(example);
        let known = Path::new("config-examples").join(example.file);
        if std::fs::read_to_string(directory.join(&known)).is_ok_and(|there| there == text) {
            return Ok(known.display().to_string());
        }
        let copy = data.join(example.file);
        std::fs::write(&copy, text)?;
        Ok(copy.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::{check, split};

    use super::*;

    fn usual_to(base: u16) -> Moved {
        let mut moved = Moved::default();
        for instance in Instance::ALL {
            let (usual, actual) = (instance.ports(PORT_BASE_DEFAULT), instance.ports(base));
            moved.add(usual.app, actual.app);
            moved.add(usual.inbound, actual.inbound);
        }
        moved
    }

    #[test]
    fn on_the_usual_ports_the_files_are_used_as_they_stand() {
        let moved = usual_to(PORT_BASE_DEFAULT);
        for example in [SHOP, HALF, SHIFT] {
            assert_eq!(moved.text(example), example.text);
        }
    }

    #[test]
    fn on_ports_that_overlap_the_usual_ones_each_address_moves_once() {
        let text = usual_to(PORT_BASE_DEFAULT + PORTS_EACH).text(SHOP);
        let config = check(&split("shop", &text).unwrap()).unwrap();
        let apps = config.services.iter().filter_map(|service| service.app);
        let ports: Vec<_> = apps.map(|app| app.port()).collect();
        // By name: frontend, ratings, reviews-v1, reviews-v2.
        assert_eq!(ports, [9920, 9950, 9930, 9940]);
    }

    #[test]
    fn every_instance_has_its_document_and_every_file_is_valid_with_the_shop() {
        let shop = split("shop", SHOP.text).unwrap();
        for instance in Instance::ALL {
            assert!(shop.iter().any(|document| document.name == instance.name()));
        }
        for example in [HALF, SHIFT] {
            let changed = split(example.file, example.text).unwrap();
            let mut documents: Vec<_> = shop.clone();
            documents.retain(|document| changed.iter().all(|new| new.key() != document.key()));
            documents.extend(changed);
            assert_eq!(
                documents.len(),
                shop.len(),
                "{} only changes what is there",
                example.file
            );
            check(&documents).unwrap();
        }
    }

    #[test]
    fn the_highest_base_leaves_room_for_every_port() {
        let last = Instance::Ratings.ports(PORT_BASE_MAX).scrape.port();
        assert_eq!(last, Instance::Ratings.ports(PORT_BASE_MAX).app.port() + 4);
    }

    #[test]
    fn without_the_repository_a_copy_is_written() {
        let data = tempfile::tempdir().unwrap();
        let moved = usual_to(PORT_BASE_DEFAULT);
        let path = moved.path(HALF, Path::new("/nowhere"), data.path()).unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), HALF.text);
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let path = moved.path(HALF, &repository, data.path()).unwrap();
        assert_eq!(path, "config-examples/demo-half.yaml");
    }
}
