"""Asks the Prometheus API at the URL given by means of the package prometheus-api-client, and prints what that
makes of the answers."""

import json
import sys
from datetime import datetime, timedelta, timezone

from prometheus_api_client import PrometheusConnect, PrometheusApiClientException

START, END = (datetime.fromtimestamp(t, timezone.utc) for t in (1700000000, 1700003600))


def said(call):
    try:
        return call()
    except PrometheusApiClientException as error:
        return f"error: {error}"


def ordered(result):
    """The elements of an instant vector have no order."""
    return sorted(result, key=lambda s: json.dumps(s["metric"], sort_keys=True))


for method in ("GET", "POST"):
    client = PrometheusConnect(url=sys.argv[1], disable_ssl=True, method=method)
    time = {"time": "1700003600.5"}
    answers = {
        "connection": client.check_prometheus_connection(),
        "metrics": client.all_metrics({"start": "1700000000", "end": "1700003600"}),
        "labels": client.get_label_names({"start": "1700000000", "end": "1700003600"}),
        "values": client.get_label_values("host"),
        "current": ordered(client.get_current_metric_value("g", params=time)),
        "with labels": ordered(client.get_current_metric_value("c_total", {"code": "500"}, params=time)),
        "query": ordered(client.custom_query("sum by (host) (rate(c_total[5m]))", params=time)),
        "histogram": ordered(client.custom_query("nh", params=time)),
        "scalar": client.custom_query("1 + 1", params=time),
        "range": client.custom_query_range("rate(c_total[5m])", START, END, "15"),
        "range again": client.custom_query_range("rate(c_total[5m])", START + timedelta(minutes=5), END, "15"),
        "chunks": client.get_metric_range_data("g", start_time=START, end_time=END, chunk_size=timedelta(minutes=20)),
        "mistake": said(lambda: client.custom_query("sum(", params=time)),
        "refused": said(lambda: client.custom_query_range("rate(g)", START, END, "15")),
        "series": client.get_series(START, END, params={"match[]": "c_total"}),
        "metadata": client.get_metric_metadata("g"),
        "targets": client.get_targets(),
    }
    print(method, json.dumps(answers, sort_keys=True))
