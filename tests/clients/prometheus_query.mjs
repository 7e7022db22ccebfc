// Asks the Prometheus API at a URL by means of the package prometheus-query, and prints what that makes of the
// answers: `node prometheus_query.mjs URL SECONDS METRIC`, with the package installed beside it. Prometheus and
// Heliostat must give the same.
import { PrometheusDriver } from "prometheus-query";

const driver = new PrometheusDriver({ endpoint: process.argv[2], baseURL: "/api/v1" });
const [end, metric] = [Number(process.argv[3]) * 1000, process.argv[4]];
const [start, at] = [end - 600000, new Date(end)];
const ordered = (r) => r.result && r.result.sort((a, b) => (`${a.metric}` < `${b.metric}` ? -1 : 1)) && r;
const asks = {
    instant: async () => ordered(await driver.instantQuery(metric, at)),
    sum: () => driver.instantQuery(`sum(rate(${metric}[5m]))`, at),
    scalar: () => driver.instantQuery("1 + 1", at),
    range: () => driver.rangeQuery(`rate(${metric}[5m])`, start, end, 15),
    slid: () => driver.rangeQuery(`rate(${metric}[5m])`, start + 300000, end, 15),
    series: () => driver.series(metric, start, end),
    names: () => driver.labelNames(),
    values: () => driver.labelValues("handler"),
    metadata: () => driver.metadata(),
    targets: () => driver.targets(),
    rules: () => driver.rules(),
    alerts: () => driver.alerts(),
    mistake: () => driver.instantQuery("sum(", at),
};
for (const [name, ask] of Object.entries(asks)) {
    const said = await ask().catch((error) => `error: ${error.message}`);
    console.log(name, JSON.stringify(said));
}
