use super::problems::{PROBLEM_BYTES_MAX, UNPROVEN_PROBLEM_BYTES_MAX};
use super::*;

fn nodes() -> Arc<Nodes> {
    Arc::new(Nodes::of_store("ours".into()))
}

fn poll(id: &str, version: &str, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Node {
            id: id.into(),
            ..Node::default()
        },
        version: version.into(),
        nonce: nonce.into(),
        ..DiscoveryRequest::default()
    }
}

fn nack(id: &str, version: &str, nonce: &str) -> DiscoveryRequest {
    let problem = Problem {
        file: "reviews.yaml".into(),
        line: 3,
        column: 5,
        path: "routes[0]".into(),
        message: "no".into(),
    };
    DiscoveryRequest {
        error: Some(outrigger_config::discovery::Refusal {
            problems: vec![problem],
        }),
        ..poll(id, version, nonce)
    }
}

fn only(nodes: &Nodes, head: u64) -> NodeView {
    let list = nodes.list(head, &RevokedSet::default());
    assert_eq!(list.nodes.len(), 1);
    list.nodes.into_iter().next().unwrap()
}

#[test]
fn of_what_a_node_refused_so_much_is_kept_and_less_of_one_that_has_proved_nothing() {
    let problem = |message: &str| Problem {
        file: "reviews.yaml".into(),
        message: message.into(),
        ..Problem::default()
    };
    let bytes = |problems: &[Problem]| {
        problems
            .iter()
            .map(|one| one.message.len() + one.file.len())
            .sum::<usize>()
    };
    let many = vec![problem(&"é".repeat(50_000)); 101];
    let kept = bounded_problems(many.iter(), false);
    assert_eq!((kept.len(), bytes(&kept)), (1, UNPROVEN_PROBLEM_BYTES_MAX));
    assert_eq!(bytes(&bounded_problems(many.iter(), true)), PROBLEM_BYTES_MAX);
    let few = vec![problem("no"); 101];
    assert_eq!(bounded_problems(few.iter(), false), few);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_behind_until_it_acknowledges_and_then_in_sync() {
    let nodes = nodes();
    let nonce = nodes.enter(&poll("a", "", ""), None).unwrap().answer(7);
    assert_eq!(only(&nodes, 7).state, NodeState::Behind);
    let _held = nodes.enter(&poll("a", "7", &nonce), None).unwrap();
    let view = only(&nodes, 7);
    assert_eq!((view.state, view.holds.as_str()), (NodeState::InSync, "7"));
    assert_eq!(only(&nodes, 8).state, NodeState::Behind);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_holds_the_same_number_of_another_store_is_behind_and_says_so() {
    let nodes = nodes();
    let request = DiscoveryRequest {
        store: "theirs".into(),
        ..poll("a", "7", "")
    };
    let nonce = nodes.enter(&request, None).unwrap().answer(7);
    let view = only(&nodes, 7);
    assert_eq!((view.state, view.holds.as_str()), (NodeState::Behind, "7"));
    assert_eq!(view.holds_store.as_deref(), Some("theirs"));
    let applied = DiscoveryRequest {
        store: "ours".into(),
        ..poll("a", "7", &nonce)
    };
    let _held = nodes.enter(&applied, None).unwrap();
    let view = only(&nodes, 7);
    assert_eq!((view.state, view.holds_store), (NodeState::InSync, None));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_stays_until_the_node_accepts_something() {
    let nodes = nodes();
    let nonce = nodes.enter(&poll("a", "6", ""), None).unwrap().answer(7);
    let held = nodes.enter(&nack("a", "6", &nonce), None).unwrap();
    assert_eq!(held.refused(), Some(7));
    let view = only(&nodes, 7);
    assert_eq!((view.state, view.holds.as_str()), (NodeState::Refused, "6"));
    assert_eq!(view.refused.unwrap().problems[0].message, "no");
    let nonce = held.answer(8);
    assert_eq!(only(&nodes, 8).state, NodeState::Refused);
    let _held = nodes.enter(&poll("a", "8", &nonce), None).unwrap();
    let view = only(&nodes, 8);
    assert_eq!((view.state, view.refused), (NodeState::InSync, None));
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_changes_nothing() {
    let nodes = nodes();
    let old = nodes.enter(&poll("a", "6", ""), None).unwrap().answer(7);
    let new = nodes.enter(&poll("a", "6", ""), None).unwrap().answer(8);
    assert_ne!(old, new);
    let held = nodes.enter(&nack("a", "6", &old), None).unwrap();
    assert_eq!(held.refused(), None);
    let other = nodes.enter(&poll("b", "8", &new), None).unwrap();
    assert_eq!(
        nodes.list(8, &RevokedSet::default()).nodes[0].holds,
        "6",
        "another node's nonce is not this node's"
    );
    drop((held, other));
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_is_seen_at_once_and_a_gap_between_polls_only_after_the_grace() {
    let nodes = nodes();
    nodes.enter(&poll("a", "7", ""), None).unwrap().end();
    assert!(only(&nodes, 7).connected);
    tokio::time::advance(GRACE).await;
    let view = only(&nodes, 7);
    assert_eq!(
        (view.connected, view.state, view.last_seen_seconds),
        (false, NodeState::Gone, 2)
    );

    let mut changes = nodes.subscribe();
    let held = nodes.enter(&poll("a", "7", ""), None).unwrap();
    changes.changed().await.unwrap();
    assert!(only(&nodes, 7).connected);
    drop(held);
    changes.changed().await.unwrap();
    assert!(!only(&nodes, 7).connected);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_for_ten_minutes_is_forgotten() {
    let nodes = nodes();
    nodes.enter(&poll("a", "7", ""), None).unwrap().end();
    let held = nodes.enter(&poll("b", "7", ""), None).unwrap();
    tokio::time::advance(FORGET_AFTER).await;
    assert_eq!(only(&nodes, 7).id, "b", "one that is held for long is not away");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_full_table_forgets_who_is_away_longest_and_turns_away_only_when_all_are_here() {
    let nodes = nodes();
    nodes.enter(&poll("first", "", ""), None).unwrap().end();
    tokio::time::advance(GRACE).await;
    let mut held: Vec<Poll> = (1..NODES_MAX)
        .map(|number| nodes.enter(&poll(&number.to_string(), "", ""), None).unwrap())
        .collect();
    held.push(nodes.enter(&poll("one more", "", ""), None).unwrap());
    let list = nodes.list(0, &RevokedSet::default());
    assert_eq!(list.nodes.len(), NODES_MAX);
    assert!(list.nodes.iter().all(|node| node.id != "first"));
    assert_eq!(
        nodes.enter(&poll("too many", "", ""), None).unwrap_err(),
        NodeError::Full
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_without_an_id_is_turned_away_with_what_to_do() {
    let problem = nodes().enter(&poll("", "", ""), None).unwrap_err();
    assert!(problem.to_string().contains("--node-id"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_with_what_it_refused_is_no_longer_refused() {
    let nodes = nodes();
    let nonce = nodes.enter(&poll("a", "6", ""), None).unwrap().answer(7);
    nodes.enter(&nack("a", "6", &nonce), None).unwrap().end();
    let _held = nodes.enter(&poll("a", "7", ""), None).unwrap();
    assert_eq!(only(&nodes, 7).state, NodeState::InSync);
}

fn run(id: &str, instance: &str, version: &str, nonce: &str) -> DiscoveryRequest {
    let mut request = poll(id, version, nonce);
    request.node.instance = instance.into();
    request
}

#[tokio::test(start_paused = true)]
async fn two_processes_with_one_id_are_both_shown_with_what_to_do() {
    let nodes = nodes();
    let nonce = nodes.enter(&run("a", "one", "", ""), None).unwrap().answer(7);
    let one = nodes.enter(&run("a", "one", "7", &nonce), None).unwrap();
    let two = nodes.enter(&run("a", "two", "6", ""), None).unwrap();
    let list = nodes.list(7, &RevokedSet::default()).nodes;
    let states: Vec<_> = list.iter().map(|node| (node.state, &*node.instance)).collect();
    assert_eq!(states, [(NodeState::InSync, "one"), (NodeState::Behind, "two")]);
    for node in &list {
        let note = node.note.as_deref().unwrap();
        assert!(note.contains("call themselves a"), "{note}");
        assert!(note.contains("--node-id"), "{note}");
    }
    drop(one);
    let left = only(&nodes, 7);
    assert_eq!((left.instance.as_str(), left.note), ("two", None));
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_again_takes_the_place_of_its_earlier_run() {
    let nodes = nodes();
    drop(nodes.enter(&run("a", "one", "7", ""), None).unwrap());
    assert_eq!(only(&nodes, 7).state, NodeState::Gone);
    let _held = nodes.enter(&run("a", "two", "7", ""), None).unwrap();
    let view = only(&nodes, 7);
    assert_eq!(
        (view.instance.as_str(), view.state, view.note),
        ("two", NodeState::InSync, None)
    );
}

fn certificate(service: &str) -> Certificate {
    Certificate {
        shown: Shown {
            spiffe_id: format!("spiffe://shop/{service}"),
            not_after: 2_000_000_000,
        },
        serial: "0ab1".to_owned(),
        counts: true,
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_connection_proved_counts_and_not_what_the_poll_says_of_itself() {
    let nodes = nodes();
    let mut says = poll("a", "7", "");
    says.identity = Some(certificate("admin").shown);
    let held = nodes.enter(&says, Some(&certificate("reviews"))).unwrap();
    let view = only(&nodes, 7);
    assert_eq!(view.identity.as_ref().unwrap().spiffe_id, "spiffe://shop/reviews");
    assert!(view.verified && !view.revoked);
    let by = |serials: &[&str], identities: &[&str]| {
        let revoked = outrigger_config::join::Revoked {
            serials: serials.iter().map(|&text| text.to_owned()).collect(),
            identities: identities.iter().map(|&text| text.to_owned()).collect(),
        };
        nodes.list(7, &RevokedSet::of(Some(&revoked))).nodes[0].revoked
    };
    assert!(by(&["ab1"], &[]) && by(&[], &["spiffe://shop/reviews"]));
    assert!(!by(&["ab2"], &["spiffe://shop/admin"]));
    drop(held);
    let _held = nodes.enter(&says, None).unwrap();
    let list = nodes.list(7, &RevokedSet::default()).nodes;
    let shown: Vec<_> = list.iter().map(|node| (node.verified, node.connected)).collect();
    assert_eq!(
        shown,
        [(false, true), (true, false)],
        "who proves nothing hides nobody"
    );
    assert_eq!(
        list[0].identity.as_ref().unwrap().spiffe_id,
        "spiffe://shop/admin"
    );
}

#[tokio::test(start_paused = true)]
async fn a_poll_without_proof_neither_overwrites_nor_answers_for_a_verified_node() {
    let nodes = nodes();
    let proof = certificate("reviews");
    let nonce = nodes
        .enter(&run("a", "one", "6", ""), Some(&proof))
        .unwrap()
        .answer(7);
    let held = nodes.enter(&run("a", "one", "7", &nonce), Some(&proof)).unwrap();
    // The same id and the same process, with the very nonce; and the same with another's proof.
    let forged = nodes.enter(&run("a", "one", "3", &nonce), None).unwrap();
    let other = nodes
        .enter(&run("a", "one", "4", &nonce), Some(&certificate("ratings")))
        .unwrap();
    let list = nodes.list(7, &RevokedSet::default()).nodes;
    let own = list.iter().find(|node| node.holds == "7").unwrap();
    assert_eq!((own.state, own.verified), (NodeState::InSync, true));
    assert!(list.iter().all(|node| node.note.is_some()), "{list:?}");
    drop((forged, other));
    let list = nodes.list(7, &RevokedSet::default()).nodes;
    assert_eq!((list.len(), &*list[0].holds, &list[0].note), (1, "7", &None));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_does_not_count_makes_nobody_verified() {
    let nodes = nodes();
    let mut proof = certificate("reviews");
    proof.counts = false;
    let _held = nodes.enter(&poll("a", "7", ""), Some(&proof)).unwrap();
    assert!(!only(&nodes, 7).verified);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_has_come_to_prove_who_it_is_is_one_node() {
    let nodes = nodes();
    nodes.enter(&run("a", "one", "", ""), None).unwrap().end();
    let _held = nodes
        .enter(&run("a", "one", "", ""), Some(&certificate("reviews")))
        .unwrap();
    let view = only(&nodes, 7);
    assert_eq!((view.verified, view.note), (true, None));
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_full_of_names_without_proof_has_room_for_who_proves_its_own() {
    let nodes = nodes();
    let proof = certificate("reviews");
    nodes.enter(&poll("away", "", ""), Some(&proof)).unwrap().end();
    tokio::time::advance(GRACE).await;
    let _held: Vec<Poll> = (1..NODES_MAX)
        .map(|number| nodes.enter(&poll(&number.to_string(), "", ""), None).unwrap())
        .collect();
    let full = nodes.enter(&poll("one more", "", ""), None).unwrap_err();
    assert_eq!(full, NodeError::Full, "it would have evicted a verified one");
    let _own = nodes.enter(&poll("own", "", ""), Some(&proof)).unwrap();
    let list = nodes.list(0, &RevokedSet::default()).nodes;
    for id in ["away", "own"] {
        assert!(list.iter().any(|node| node.id == id), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn notices_are_shown_within_bounds_while_the_node_is_there_and_a_change_is_news() {
    use outrigger_config::discovery::{NOTICE_BYTES_MAX, NOTICES_MAX};
    let nodes = nodes();
    let mut news = nodes.subscribe();
    let mut says = poll("a", "7", "");
    let held = nodes.enter(&says, None).unwrap();
    assert!(only(&nodes, 7).notices.is_empty());
    news.mark_unchanged();
    says.notices = vec!["é".repeat(NOTICE_BYTES_MAX); NOTICES_MAX + 1];
    let next = nodes.enter(&says, None).unwrap();
    assert!(news.has_changed().unwrap());
    let shown = only(&nodes, 7).notices;
    assert_eq!(shown.len(), NOTICES_MAX);
    assert!(shown.iter().all(|notice| notice.len() <= NOTICE_BYTES_MAX));
    news.mark_unchanged();
    drop(nodes.enter(&says, None).unwrap());
    assert!(!news.has_changed().unwrap(), "the same is no news");
    drop((held, next));
    assert!(only(&nodes, 7).notices.is_empty(), "it is gone");
}
