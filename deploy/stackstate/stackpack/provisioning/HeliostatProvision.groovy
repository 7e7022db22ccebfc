import com.stackstate.stackpack.ProvisioningContext
import com.stackstate.stackpack.ProvisioningIO
import com.stackstate.stackpack.ProvisioningScript
import com.stackstate.stackpack.Version

class HeliostatProvision extends ProvisioningScript {

  HeliostatProvision(ProvisioningContext context) {
    super(context)
  }

  // The templates refer to the data source by its identifier, so it has to exist already.
  @Override
  ProvisioningIO<scala.Unit> install(Map<String, Object> config) {
    return context().stackPack().importSnapshot("templates/streams.stj", [:]) >>
        context().stackPack().importSnapshot("templates/monitors.stj", [:])
  }

  @Override
  ProvisioningIO<scala.Unit> upgrade(Map<String, Object> config, Version previousVersion) {
    return install(config)
  }
}
