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
    let list = nodes.list(head);
    assert_eq!(list.nodes.len(), 1);
    list.nodes.into_iter().next().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_node_is_behind_until_it_acknowledges_and_then_in_sync() {
    let nodes = nodes();
    let nonce = nodes.enter(&poll("a", "", "")).unwrap().answer(7);
    assert_eq!(only(&nodes, 7).state, NodeState::Behind);
    let _held = nodes.enter(&poll("a", "7", &nonce)).unwrap();
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
    let nonce = nodes.enter(&request).unwrap().answer(7);
    let view = only(&nodes, 7);
    assert_eq!((view.state, view.holds.as_str()), (NodeState::Behind, "7"));
    assert_eq!(view.holds_store.as_deref(), Some("theirs"));
    let applied = DiscoveryRequest {
        store: "ours".into(),
        ..poll("a", "7", &nonce)
    };
    let _held = nodes.enter(&applied).unwrap();
    let view = only(&nodes, 7);
    assert_eq!((view.state, view.holds_store), (NodeState::InSync, None));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_stays_until_the_node_accepts_something() {
    let nodes = nodes();
    let nonce = nodes.enter(&poll("a", "6", "")).unwrap().answer(7);
    let held = nodes.enter(&nack("a", "6", &nonce)).unwrap();
    assert_eq!(held.refused(), Some(7));
    let view = only(&nodes, 7);
    assert_eq!((view.state, view.holds.as_str()), (NodeState::Refused, "6"));
    assert_eq!(view.refused.unwrap().problems[0].message, "no");
    let nonce = held.answer(8);
    assert_eq!(only(&nodes, 8).state, NodeState::Refused);
    let _held = nodes.enter(&poll("a", "8", &nonce)).unwrap();
    let view = only(&nodes, 8);
    assert_eq!((view.state, view.refused), (NodeState::InSync, None));
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_changes_nothing() {
    let nodes = nodes();
    let old = nodes.enter(&poll("a", "6", "")).unwrap().answer(7);
    let new = nodes.enter(&poll("a", "6", "")).unwrap().answer(8);
    assert_ne!(old, new);
    let held = nodes.enter(&nack("a", "6", &old)).unwrap();
    assert_eq!(held.refused(), None);
    let other = nodes.enter(&poll("b", "8", &new)).unwrap();
    assert_eq!(
        nodes.list(8).nodes[0].holds,
        "6",
        "another node's nonce is not this node's"
    );
    drop((held, other));
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_is_seen_at_once_and_a_gap_between_polls_only_after_the_grace() {
    let nodes = nodes();
    nodes.enter(&poll("a", "7", "")).unwrap().end();
    assert!(only(&nodes, 7).connected);
    tokio::time::advance(GRACE).await;
    let view = only(&nodes, 7);
    assert_eq!(
        (view.connected, view.state, view.last_seen_seconds),
        (false, NodeState::Gone, 2)
    );

    let mut changes = nodes.subscribe();
    let held = nodes.enter(&poll("a", "7", "")).unwrap();
    changes.changed().await.unwrap();
    assert!(only(&nodes, 7).connected);
    drop(held);
    changes.changed().await.unwrap();
    assert!(!only(&nodes, 7).connected);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_for_ten_minutes_is_forgotten() {
    let nodes = nodes();
    nodes.enter(&poll("a", "7", "")).unwrap().end();
    let held = nodes.enter(&poll("b", "7", "")).unwrap();
    tokio::time::advance(FORGET_AFTER).await;
    assert_eq!(only(&nodes, 7).id, "b", "one that is held for long is not away");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_full_table_forgets_who_is_away_longest_and_turns_away_only_when_all_are_here() {
    let nodes = nodes();
    nodes.enter(&poll("first", "", "")).unwrap().end();
    tokio::time::advance(GRACE).await;
    let mut held: Vec<Poll> = (1..NODES_MAX)
        .map(|number| nodes.enter(&poll(&number.to_string(), "", "")).unwrap())
        .collect();
    held.push(nodes.enter(&poll("one more", "", "")).unwrap());
    let list = nodes.list(0);
    assert_eq!(list.nodes.len(), NODES_MAX);
    assert!(list.nodes.iter().all(|node| node.id != "first"));
    assert_eq!(
        nodes.enter(&poll("too many", "", "")).unwrap_err(),
        NodeError::Full
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_without_an_id_is_turned_away_with_what_to_do() {
    let problem = nodes().enter(&poll("", "", "")).unwrap_err();
    assert!(problem.to_string().contains("--node-id"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_with_what_it_refused_is_no_longer_refused() {
    let nodes = nodes();
    let nonce = nodes.enter(&poll("a", "6", "")).unwrap().answer(7);
    nodes.enter(&nack("a", "6", &nonce)).unwrap().end();
    let _held = nodes.enter(&poll("a", "7", "")).unwrap();
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
    let nonce = nodes.enter(&run("a", "one", "", "")).unwrap().answer(7);
    let one = nodes.enter(&run("a", "one", "7", &nonce)).unwrap();
    let two = nodes.enter(&run("a", "two", "6", "")).unwrap();
    let list = nodes.list(7).nodes;
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
    drop(nodes.enter(&run("a", "one", "7", "")).unwrap());
    assert_eq!(only(&nodes, 7).state, NodeState::Gone);
    let _held = nodes.enter(&run("a", "two", "7", "")).unwrap();
    let view = only(&nodes, 7);
    assert_eq!(
        (view.instance.as_str(), view.state, view.note),
        ("two", NodeState::InSync, None)
    );
}
