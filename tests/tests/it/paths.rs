//! A path has one form, for the choice of its route and for the endpoint.

use outrigger_tests::{Ask, ServiceFile, Sidecar, Upstream};

/// A service whose admin pages go elsewhere.
async fn behind(field: &str) -> (Upstream, Upstream, Sidecar) {
    let (open, admin) = (Upstream::start("open").await, Upstream::start("admin").await);
    let file = ServiceFile::new("reviews")
        .field(field)
        .backend("open", &[open.address()])
        .backend("admin", &[admin.address()])
        .route("admin", &[("admin", 1)], "match: [{ path: { prefix: /admin } }]")
        .route("rest", &[("open", 1)], "");
    let sidecar = Sidecar::of(file).await;
    (open, admin, sidecar)
}

#[tokio::test]
async fn no_way_of_writing_a_path_goes_around_its_route_and_the_endpoint_sees_the_one_form() {
    let (_open, admin, sidecar) = behind("protocol: http").await;
    for (path, form) in [
        ("/admin/x", "/admin/x"),
        ("//admin/x", "/admin/x"),
        ("/a/../admin/x", "/admin/x"),
        ("/a/%2e%2E/admin//x?y=//%2e", "/admin/x?y=//%2e"),
        ("/%61dmin/x", "/admin/x"),
        ("/./admin/./x/", "/admin/x/"),
        ("http://reviews//admin/x", "/admin/x"),
    ] {
        let reply = sidecar.client().send(Ask::get(path).host("reviews")).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "admin"), "{path}");
        assert_eq!(admin.last().target(), form, "{path}");
    }
}

#[tokio::test]
async fn a_path_that_servers_read_differently_is_refused_and_reaches_nobody() {
    let (open, admin, sidecar) = behind("protocol: http").await;
    for path in [
        "/../admin",
        "/a/%2e%2e/..",
        "/a\\..\\admin",
        "/a%",
        "/a%zz",
        "/admin%00",
    ] {
        let reply = sidecar.client().send(Ask::get(path).host("reviews")).await;
        assert_eq!(
            (reply.status(), reply.reason()),
            (400, Some("bad-request")),
            "{path}"
        );
    }
    assert_eq!(open.requests() + admin.requests(), 0);
}

#[tokio::test]
async fn a_service_may_have_its_paths_as_they_come() {
    let (open, _admin, sidecar) = behind("normalize_paths: false").await;
    for path in ["/https://example.com/a", "//admin", "/a/%2e%2e/b", "/a%zz"] {
        let reply = sidecar.client().send(Ask::get(path).host("reviews")).await;
        assert_eq!((reply.status(), reply.upstream()), (200, "open"), "{path}");
        assert_eq!(open.last().target(), path);
    }
}
