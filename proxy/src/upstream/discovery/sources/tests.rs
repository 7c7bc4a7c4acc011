//! What is joined of what is known.

use std::time::{Duration, Instant};

use super::*;
use crate::upstream::discovery::answer::{Answer, AnsweredBy, Bad, Good, Heard, Service, Why, Word};
use crate::upstream::discovery::memory::Bounds;

const HOUR: Duration = Duration::from_secs(3600);

/// What is known after these answers, and nothing of what was kept any more where `over`.
fn known(answers: &[Answer], over: bool) -> Known {
    let mut known = Known::default();
    let bounds = Bounds {
        floor: Duration::from_secs(1),
        ceiling: Duration::from_secs(60),
    };
    let (now, noon) = (
        Instant::now(),
        SystemTime::UNIX_EPOCH + 12 * HOUR + Duration::from_secs(67),
    );
    for answer in answers {
        known.memory.learn(answer, bounds, (now, noon));
    }
    if over {
        known.memory.expire(HOUR, now + HOUR);
    }
    known
}

fn answer(records: Vec<Record>) -> Answer {
    Ok(Good {
        records,
        ttl: Duration::from_secs(1),
        heard: Heard::WHOLE,
        found_as: "a.".to_owned(),
        from: AnsweredBy::Hosts,
    })
}

fn addresses(texts: &[&str]) -> Answer {
    let parsed = texts.iter().map(|text| Record::Address(text.parse().unwrap()));
    answer(parsed.collect())
}

fn services(places: &[(u16, u16, &str)]) -> Answer {
    let services = places.iter().map(|(priority, weight, target)| {
        Record::Service(Service {
            priority: *priority,
            weight: *weight,
            port: 80,
            target: (*target).to_owned(),
        })
    });
    answer(services.collect())
}

fn nothing(why: Why) -> Answer {
    Err(Bad { why, ttl: None })
}

fn about<'a>(name: &'a str, known: &'a Known) -> About<'a> {
    About {
        name,
        family: Family::Any,
        keep: HOUR,
        known,
    }
}

fn strict(known: About<'_>) -> Part<'_> {
    Part::Addresses {
        known,
        port: 80,
        mode: DnsMode::Strict,
    }
}

fn joined(parts: &[Part<'_>]) -> Joined {
    join(parts, |_| Stands::Unknown, &mut HashSet::new())
}

fn shown(joined: &Joined) -> Vec<String> {
    let endpoints = joined.endpoints.iter();
    endpoints
        .map(|endpoint| format!("{} x{}", endpoint.address, endpoint.weight))
        .collect()
}

#[test]
fn several_sources_are_one_set_and_each_address_stands_once() {
    let (one, two) = (
        known(&[addresses(&["10.0.0.2", "10.0.0.1"])], false),
        known(&[addresses(&["10.0.0.2", "10.0.0.3"])], false),
    );
    let listed = [StaticEndpoint {
        address: "10.0.0.9:80".parse().unwrap(),
        weight: 3,
    }];
    let parts = [
        Part::Listed(&listed),
        strict(about("one", &one)),
        strict(about("two", &two)),
    ];
    assert_eq!(
        shown(&joined(&parts)),
        [
            "10.0.0.9:80 x3",
            "10.0.0.1:80 x1",
            "10.0.0.2:80 x1",
            "10.0.0.3:80 x1"
        ]
    );
}

#[test]
fn the_family_that_is_preferred_is_alone_where_it_is_there() {
    let both = known(&[addresses(&["10.0.0.1", "2001:db8::1"])], false);
    let four = known(&[addresses(&["10.0.0.1"])], false);
    for (known, expected) in [(&both, "[2001:db8::1]:80 x1"), (&four, "10.0.0.1:80 x1")] {
        let about = About {
            family: Family::PreferV6,
            ..about("a", known)
        };
        assert_eq!(shown(&joined(&[strict(about)])), [expected]);
    }
}

#[test]
fn a_logical_name_is_the_first_address_of_its_last_answer() {
    let known = known(
        &[
            addresses(&["10.0.0.1", "10.0.0.2"]),
            addresses(&["10.0.0.3", "10.0.0.1"]),
        ],
        false,
    );
    let part = Part::Addresses {
        known: about("a", &known),
        port: 80,
        mode: DnsMode::Logical,
    };
    assert_eq!(shown(&joined(&[part])), ["10.0.0.3:80 x1"]);
}

#[test]
fn a_logical_name_leaves_an_address_that_is_ill_for_the_next_of_the_answer() {
    let known = known(&[addresses(&["10.0.0.1", "10.0.0.2"])], false);
    let mut left = HashSet::new();
    let mut chosen = |ill: &[&str]| {
        let part = Part::Addresses {
            known: about("a", &known),
            port: 80,
            mode: DnsMode::Logical,
        };
        let stands = |at: SocketAddr| match ill.contains(&at.to_string().as_str()) {
            true => Stands::Ill,
            false => Stands::Unknown,
        };
        shown(&join(&[part], stands, &mut left)).remove(0)
    };
    assert_eq!(chosen(&[]), "10.0.0.1:80 x1");
    assert_eq!(chosen(&["10.0.0.1:80"]), "10.0.0.2:80 x1");
    assert_eq!(
        chosen(&[]),
        "10.0.0.2:80 x1",
        "nobody knows that the first is well again"
    );
    assert_eq!(
        chosen(&["10.0.0.2:80"]),
        "10.0.0.1:80 x1",
        "now that both were ill it is tried"
    );
}

#[test]
fn what_an_answer_lacked_goes_when_it_is_ill_and_comes_back_when_it_is_named_again() {
    let before = addresses(&["10.0.0.1", "10.0.0.2"]);
    let lacking = known(&[before.clone(), addresses(&["10.0.0.1", "10.0.0.3"])], false);
    let mut left = HashSet::new();
    let ill: SocketAddr = "10.0.0.2:80".parse().unwrap();
    let mut count = |known: &Known, stands: Stands| {
        let stands = |at| if at == ill { stands } else { Stands::Well };
        join(&[strict(about("a", known))], stands, &mut left)
            .endpoints
            .len()
    };
    assert_eq!(count(&lacking, Stands::Well), 3);
    assert_eq!(count(&lacking, Stands::Ill), 2);
    assert_eq!(count(&lacking, Stands::Unknown), 2, "gone is gone");
    let named = known(&[before], false);
    assert_eq!(
        count(&named, Stands::Ill),
        2,
        "one that is named stays however it stands"
    );
    assert_eq!(count(&lacking, Stands::Unknown), 3);
}

/// Hosts `a.` to `c.`, the first with two addresses.
fn hosts() -> [(&'static str, Known); 3] {
    [
        ("a.", known(&[addresses(&["10.0.0.1", "10.0.0.2"])], false)),
        ("b.", known(&[addresses(&["10.0.0.3"])], false)),
        ("c.", known(&[addresses(&["10.0.0.4"])], false)),
    ]
}

fn service<'a>(known: &'a Known, hosts: &'a [(&'static str, Known)]) -> Part<'a> {
    let targets = hosts.iter().map(|(name, known)| (*name, about(name, known)));
    Part::Services {
        known: about("_s._tcp.a", known),
        targets: targets.collect(),
    }
}

#[test]
fn weights_of_srv_records_are_shared_by_the_addresses_of_their_hosts() {
    let hosts = hosts();
    for (places, expected) in [
        (
            [(0, 10, "a."), (0, 30, "b."), (0, 20, "c.")],
            [
                "10.0.0.1:80 x1",
                "10.0.0.2:80 x1",
                "10.0.0.3:80 x6",
                "10.0.0.4:80 x4",
            ],
        ),
        (
            [(0, 0, "a."), (0, 0, "b."), (0, 0, "c.")],
            [
                "10.0.0.1:80 x1",
                "10.0.0.2:80 x1",
                "10.0.0.3:80 x1",
                "10.0.0.4:80 x1",
            ],
        ),
        (
            [(0, 2, "a."), (0, 1, "b."), (0, 0, "c.")],
            [
                "10.0.0.1:80 x100",
                "10.0.0.2:80 x100",
                "10.0.0.3:80 x100",
                "10.0.0.4:80 x1",
            ],
        ),
    ] {
        let known = known(&[services(&places)], false);
        assert_eq!(shown(&joined(&[service(&known, &hosts)])), expected);
    }
}

#[test]
fn the_lowest_priority_serves_while_one_of_it_is_well() {
    let hosts = hosts();
    let known = known(&[services(&[(1, 0, "a."), (2, 0, "b."), (3, 0, "c.")])], false);
    for (ill, expected, awaited) in [
        (&[][..], 2, 0),
        (&["10.0.0.1:80"], 2, 0),
        (&["10.0.0.1:80", "10.0.0.2:80"], 3, 2),
        (&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], 4, 3),
        (
            &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"],
            4,
            0,
        ),
    ] {
        let stands = |at: SocketAddr| match ill.contains(&at.to_string().as_str()) {
            true => Stands::Ill,
            false => Stands::Well,
        };
        let joined = join(&[service(&known, &hosts)], stands, &mut HashSet::new());
        assert_eq!(
            (joined.endpoints.len(), joined.awaited),
            (expected, awaited),
            "{ill:?}"
        );
        assert!(joined.has_standbys);
    }
}

#[test]
fn where_there_is_none_every_reason_is_told() {
    let good = addresses(&["10.0.0.1"]);
    for (known, expected) in [
        (Known::default(), "DNS for a has not answered yet"),
        (
            known(&[nothing(Why::NoSuchName)], false),
            "DNS for a: NXDOMAIN since 12:01:07",
        ),
        (
            known(&[good.clone(), nothing(Why::ServerFailed)], true),
            "DNS for a: SERVFAIL since 12:01:07 (kept for 1h)",
        ),
        (
            known(&[good, nothing(Why::TimedOut), nothing(Why::Empty)], true),
            "DNS for a: no record since 12:01:07 (kept for 1h)",
        ),
    ] {
        assert_eq!(joined(&[strict(about("a", &known))]).absence, expected);
    }
    let gone = known(&[services(&[(0, 0, ".")])], false);
    let missing = known(&[nothing(Why::NoSuchName)], false);
    let parts = [service(&gone, &[]), strict(about("b", &missing))];
    assert_eq!(
        joined(&parts).absence,
        "DNS for b: NXDOMAIN since 12:01:07; SRV for _s._tcp.a says that there is no such service"
    );
    assert_eq!(joined(&[Part::Listed(&[])]).absence, "no address is listed");
}

#[test]
fn there_are_no_more_endpoints_than_there_may_be_and_the_lowest_priorities_are_among_them() {
    let texts: Vec<String> = (0..4000)
        .map(|number| format!("10.0.{}.{}", number / 250, number % 250))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let many = known(&[addresses(&texts)], false);
    let parts = |ports: &'static [u16]| {
        ports.iter().map(|port| Part::Addresses {
            known: about("a", &many),
            port: *port,
            mode: DnsMode::Strict,
        })
    };
    let all: Vec<Part<'_>> = parts(&[80, 81]).collect();
    let found = joined(&all);
    assert_eq!(
        (found.endpoints.len(), found.left_out),
        (ENDPOINTS_MAX, 8000 - ENDPOINTS_MAX)
    );
    // The same address on the same port is one.
    let twice: Vec<Part<'_>> = parts(&[80, 80]).collect();
    assert_eq!(
        (joined(&twice).endpoints.len(), joined(&twice).left_out),
        (4000, 0)
    );

    let hosts = [
        ("few.", known(&[addresses(&["10.1.0.1"])], false)),
        ("many.", many.clone()),
    ];
    // In the order of the answer the many come first, and each on a port of its own would fill the set.
    let mut named = services(&[(2, 0, "many."), (3, 0, "many."), (1, 0, "few.")]);
    for (port, record) in (80..).zip(&mut named.as_mut().unwrap().records) {
        if let Record::Service(service) = record {
            service.port = port;
        }
    }
    let srv = known(&[named], false);
    let ill = |_| Stands::Ill;
    let found = join(&[service(&srv, &hosts)], ill, &mut HashSet::new());
    assert_eq!(
        (found.endpoints.len(), found.left_out),
        (ENDPOINTS_MAX, 8001 - ENDPOINTS_MAX)
    );
    assert_eq!(found.endpoints[0].address, "10.1.0.1:82".parse().unwrap());
    assert_eq!(joined(&[service(&srv, &hosts)]).standbys.len(), ENDPOINTS_MAX - 1);
}

#[test]
fn hosts_are_counted_and_not_the_records_that_lead_to_them() {
    let names: Vec<String> = (0..TARGETS_MAX + 2).map(|number| format!("h{number}.")).collect();
    let listed = |hosts: usize, priority: u16| -> Vec<(u16, u16, &str)> {
        names[..hosts]
            .iter()
            .map(|name| (priority, 0, name.as_str()))
            .collect()
    };
    let find = |places: &[(u16, u16, &str)]| {
        let known = known(&[services(places)], false);
        let (found, left_out) = hosts_of(known.memory.records());
        (found.len(), left_out, found.contains("last."))
    };
    // As many hosts as may be, each on two priorities.
    let mut twice = listed(TARGETS_MAX, 5);
    twice.extend(listed(TARGETS_MAX, 6));
    assert_eq!(find(&twice), (TARGETS_MAX, 0, false));
    // The one of the lowest priority is among them, though it is named last.
    twice.extend(listed(TARGETS_MAX + 2, 7));
    twice.push((1, 0, "last."));
    twice.push((1, 0, "."));
    assert_eq!(find(&twice), (TARGETS_MAX, 3, true));
}

#[test]
fn a_logical_name_has_an_endpoint_whatever_family_fails() {
    let half = |heard: Heard| {
        let mut good = addresses(&["10.0.0.1"]).unwrap();
        good.heard = heard;
        Ok(good)
    };
    let both = addresses(&["10.0.0.1", "2001:db8::1"]);
    for (six, expected) in [
        (Word::Failed(Why::TimedOut), "[2001:db8::1]:80 x1"),
        (Word::Awaited, "[2001:db8::1]:80 x1"),
        (Word::Cut, "[2001:db8::1]:80 x1"),
        (Word::Whole, "10.0.0.1:80 x1"),
    ] {
        let known = known(&[both.clone(), half(Heard { six, ..Heard::WHOLE })], false);
        let part = Part::Addresses {
            known: About {
                family: Family::PreferV6,
                ..about("a", &known)
            },
            port: 80,
            mode: DnsMode::Logical,
        };
        assert_eq!(shown(&joined(&[part])), [expected]);
    }
}
